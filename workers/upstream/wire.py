"""What is sent to an upstream, and what comes back: OpenAI's shapes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.engine import EngineError, ParameterRefused, SamplingParams, TokenLogprob
from workers.engine.sampling import Likely

DETAIL_CHARACTERS = 300


class BrokenOff(EngineError):
    """The upstream's answer ended before it was complete, or is none."""


def request_of(model: str, messages: Sequence[Mapping[str, str]], sampling: SamplingParams) -> dict[str, Any]:
    """The body for `/chat/completions`. What has its default is left out: not every server knows every parameter.

    ParameterRefused for a regular expression: servers do not agree on its name, and one that does not know it would answer without.
    """
    if sampling.regex is not None:
        raise ParameterRefused("An upstream version keeps to a JSON schema (response_format), not to a regular expression.")
    body: dict[str, Any] = {
        "model": model, "messages": [_message(message) for message in messages], "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    plain = SamplingParams(max_tokens=1)
    for name in ("top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed"):
        if getattr(sampling, name) != getattr(plain, name):
            body[name] = getattr(sampling, name)
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    if sampling.schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": json.loads(sampling.schema), "strict": True}}
    return body


def _message(message: Mapping[str, str]) -> dict[str, Any]:
    said = {"role": message["role"], "content": message["content"]}
    if not message.get("image"):
        return said
    picture = {"type": "image_url", "image_url": {"url": message["image"]}}
    return {**said, "content": [picture, {"type": "text", "text": message["content"]}]}


def detail_of(body: bytes) -> str:
    """What a refusal says, cut to a sentence's length. OpenAI's shape, FastAPI's, or plain text."""
    try:
        told = json.loads(body)
        error = told.get("error", told.get("detail", told.get("message")))
        text = error.get("message") if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        text = body.decode(errors="replace")
    return " ".join(str(text or "no reason was given").split())[:DETAIL_CHARACTERS].rstrip(".")


@dataclass
class Answer:
    """One answer as it comes. `text` has no space around it; what `take` returns, joined, is the same."""

    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reused_tokens: int = 0
    pieces: int = 0  # so many chunks with text: the tokens, where the server tells no usage
    _held: str = field(default="", repr=False)  # spaces, which may turn out to be the last

    def take(self, event: dict[str, Any]) -> str:
        """What a chunk adds that may be shown now. BrokenOff where it is an error."""
        if "error" in event:
            raise BrokenOff(f"The upstream gave up: {detail_of(json.dumps(event).encode())}.")
        try:
            self._count(event.get("usage") or {})
            choice = (event.get("choices") or [{}])[0]
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            said = (choice.get("delta") or {}).get("content") or ""
            self.pieces += bool(said)
            return self._show(said)
        except (AttributeError, KeyError, TypeError, IndexError) as error:
            raise BrokenOff(f"The upstream sent what is no part of an answer ({type(error).__name__}: {error}).") from error

    def _count(self, usage: dict[str, Any]) -> None:
        self.prompt_tokens = int(usage.get("prompt_tokens") or self.prompt_tokens)
        self.completion_tokens = int(usage.get("completion_tokens") or self.completion_tokens)
        self.reused_tokens = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or self.reused_tokens)

    def _show(self, said: str) -> str:
        self._held += said
        if not self.text:
            self._held = self._held.lstrip()
        piece = self._held.rstrip()
        self._held = self._held[len(piece) :]
        self.text += piece
        return piece


class Spelling:
    """Numbers for tokens that come as text, so that they travel as our own engine's do."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._spelt: list[bytes] = []

    def bytes_of(self, number: int) -> bytes:
        return self._spelt[number]

    def read(self, event: dict[str, Any]) -> Iterator[TokenLogprob]:
        """The log-probabilities in a chunk. BrokenOff where they are not in OpenAI's shape."""
        try:
            choice = (event.get("choices") or [{}])[0]
            for entry in (choice.get("logprobs") or {}).get("content") or ():
                top = [Likely(self._number(other), float(other["logprob"])) for other in entry.get("top_logprobs") or ()]
                yield TokenLogprob(self._number(entry), float(entry["logprob"]), top)
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise BrokenOff(f"The upstream's log-probabilities are not in OpenAI's shape ({type(error).__name__}: {error}).") from error

    def _number(self, entry: dict[str, Any]) -> int:
        spelt = bytes(entry["bytes"]) if entry.get("bytes") is not None else str(entry["token"]).encode()
        if spelt not in self._numbers:
            self._numbers[spelt] = len(self._spelt)
            self._spelt.append(spelt)
        return self._numbers[spelt]
