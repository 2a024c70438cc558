"""What may be asked: one validated request for the page, our own API and OpenAI's."""

import hashlib
import re
import unicodedata
from dataclasses import dataclass, field

from django.utils.translation import gettext as _

from apps.accounts.problems import Problem
from apps.serving.pictures import require_few

MAX_CHARACTERS = 32_000
MAX_MESSAGES = 200
MAX_TOKENS = 1024
MAX_TOP_K = 1_000_000
MAX_SEED = 2**31 - 1
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Question:
    messages: list[dict]  # role, content, and of a user's the image where there is one, as `pictures.accepted` gives it
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
            raise Problem(_("Send between 1 and %(most)s messages.") % {"most": MAX_MESSAGES}, field="messages")
        for message in self.messages:
            if message.get("role") not in ROLES or not isinstance(message.get("content"), str):
                raise Problem(_("Each message needs a role (%(names)s) and its content as text.") % {"names": ", ".join(ROLES)}, field="messages")
            if _UNWRITABLE.search(message["content"]):
                raise Problem(_("The text holds characters that no text may hold (U+0000, or half of a surrogate pair)."), field="messages")
        require_few(self.messages)
        length = sum(len(m["content"]) for m in self.messages)
        if length > MAX_CHARACTERS:
            raise Problem(
                _("The conversation has %(length)s characters; at most %(most)s can be read.")
                % {"length": f"{length:,}", "most": f"{MAX_CHARACTERS:,}"},
                field="prompt",
            )
        if not self.prompt.strip():
            raise Problem(_("Ask something: the question is empty."), field="prompt")
        if not 1 <= self.max_tokens <= MAX_TOKENS:
            raise Problem(_("max_tokens must be between 1 and %(most)s.") % {"most": MAX_TOKENS}, field="max_tokens")
        if not 0 <= self.temperature <= 2:
            raise Problem(_("The temperature must be between 0 and 2."), field="temperature")
        if not 0 < self.top_p <= 1:
            raise Problem(_("top_p must be more than 0 and at most 1."), field="top_p")
        if not 0 <= self.top_k <= MAX_TOP_K:
            raise Problem(_("top_k must be between 0 (off) and %(most)s.") % {"most": MAX_TOP_K}, field="top_k")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise Problem(_("The seed must be between 0 and %(most)s.") % {"most": MAX_SEED}, field="seed")
        if len(self.stop) > 8 or any(not s or len(s) > 200 or _UNWRITABLE.search(s) for s in self.stop):
            raise Problem(_("Give at most 8 stop strings of 1 to 200 characters."), field="stop")


def prompt_key(text: str, image: str | None = None) -> str:
    """A hash that is the same for the same question asked with other spaces, case or width of punctuation, of the same picture."""
    plain = re.sub(r"[\s?？。.!！]+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()
    return hashlib.sha256(f"{plain}\0{image}".encode() if image else plain.encode()).hexdigest()
