"""What may be asked: one validated request for the page, our own API and OpenAI's."""

import hashlib
import re
import unicodedata
from dataclasses import dataclass, field, fields

from django.utils.translation import gettext as _

from apps.accounts.problems import Problem, TooLong
from apps.serving.pictures import require_few

MAX_CHARACTERS = 32_000
MAX_MESSAGES = 200
MAX_TOKENS = 1024
MAX_TOP_K = 1_000_000
MAX_SEED = 2**31 - 1
MAX_LOGPROBS = 20
MAX_BIASES = 300
MAX_FORM_CHARACTERS = 20_000
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
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[str, float] = field(default_factory=dict)  # by a token's id; a JSON object's names are text
    schema: str | None = None  # JSON Schema as text: the form of the answer
    regex: str | None = None  # the same
    logprobs: int | None = None  # of each token, and of so many of the likeliest

    @property
    def prompt(self) -> str:
        """The last question."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")

    @property
    def parameters(self) -> dict:
        """Everything but the messages: what the worker is told, and what the cache tells answers apart by."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "messages"}

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
            raise TooLong(
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
        self._check_shaping()

    def _check_shaping(self) -> None:
        if not 0 <= self.min_p <= 1:
            raise Problem(_("min_p must be between 0 (off) and 1."), field="min_p")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise Problem(_("%(name)s must be between -2 and 2.") % {"name": name}, field=name)
        if not 0 < self.repetition_penalty <= 10:
            raise Problem(_("repetition_penalty must be more than 0 and at most 10; 1 is off."), field="repetition_penalty")
        wrong = any(not token.isascii() or not token.isdigit() or not -100 <= bias <= 100 for token, bias in self.logit_bias.items())
        if wrong or len(self.logit_bias) > MAX_BIASES:
            raise Problem(
                _("logit_bias gives up to %(most)s tokens, by their ids, numbers from -100 to 100.") % {"most": MAX_BIASES}, field="logit_bias"
            )
        if len(self.schema or self.regex or "") > MAX_FORM_CHARACTERS:
            raise Problem(
                _("The form of an answer may take at most %(most)s characters.") % {"most": f"{MAX_FORM_CHARACTERS:,}"}, field="response_format"
            )
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise Problem(_("At most %(most)s alternatives are given for a token.") % {"most": MAX_LOGPROBS}, field="top_logprobs")


def prompt_key(text: str, image: str | None = None) -> str:
    """A hash that is the same for the same question asked with other spaces, case or width of punctuation, of the same picture."""
    plain = re.sub(r"[\s?？。.!！]+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()
    return hashlib.sha256(f"{plain}\0{image}".encode() if image else plain.encode()).hexdigest()
