"""What may be asked: one validated request for the page, our own API and OpenAI's."""

import hashlib
import re
import unicodedata
from dataclasses import dataclass, field

from apps.accounts.problems import Problem

MAX_CHARACTERS = 32_000
MAX_MESSAGES = 200
MAX_TOKENS = 1024
MAX_TOP_K = 1_000_000
MAX_SEED = 2**31 - 1
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Question:
    messages: list[dict]
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)

    @property
    def prompt(self) -> str:
        """The last question."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")

    @property
    def parameters(self) -> dict:
        return {name: getattr(self, name) for name in ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop")}

    @property
    def is_deterministic(self) -> bool:
        return self.temperature == 0.0

    def __post_init__(self):
        if not self.messages or len(self.messages) > MAX_MESSAGES:
            raise Problem(f"Send between 1 and {MAX_MESSAGES} messages.", field="messages")
        for message in self.messages:
            if message.get("role") not in ROLES or not isinstance(message.get("content"), str):
                raise Problem(f"Each message needs a role ({', '.join(ROLES)}) and its content as text.", field="messages")
            if _UNWRITABLE.search(message["content"]):
                raise Problem("The text holds characters that no text may hold (U+0000, or half of a surrogate pair).", field="messages")
        length = sum(len(m["content"]) for m in self.messages)
        if length > MAX_CHARACTERS:
            raise Problem(f"The conversation has {length:,} characters; at most {MAX_CHARACTERS:,} can be read.", field="prompt")
        if not self.prompt.strip():
            raise Problem("Ask something: the question is empty.", field="prompt")
        if not 1 <= self.max_tokens <= MAX_TOKENS:
            raise Problem(f"max_tokens must be between 1 and {MAX_TOKENS}.", field="max_tokens")
        if not 0 <= self.temperature <= 2:
            raise Problem("The temperature must be between 0 and 2.", field="temperature")
        if not 0 < self.top_p <= 1:
            raise Problem("top_p must be more than 0 and at most 1.", field="top_p")
        if not 0 <= self.top_k <= MAX_TOP_K:
            raise Problem(f"top_k must be between 0 (off) and {MAX_TOP_K}.", field="top_k")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise Problem(f"The seed must be between 0 and {MAX_SEED}.", field="seed")
        if len(self.stop) > 8 or any(not s or len(s) > 200 or _UNWRITABLE.search(s) for s in self.stop):
            raise Problem("Give at most 8 stop strings of 1 to 200 characters.", field="stop")


def prompt_key(text: str) -> str:
    """A hash that is the same for the same question asked with other spaces, case or width of punctuation."""
    plain = re.sub(r"[\s?？。.!！]+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()
    return hashlib.sha256(plain.encode()).hexdigest()
