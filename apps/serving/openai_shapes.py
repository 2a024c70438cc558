"""How answers are written in OpenAI's shapes, whole and in chunks."""

import time
from abc import ABC, abstractmethod

from apps.serving.services import Pending


def finish_reason_of(pending: Pending) -> str:
    return "length" if pending.finish_reason == "length" else "stop"


def token_text(token: dict) -> str:
    """A token that is part of a character is written by its bytes, as OpenAI does: `\\xe5`."""
    return bytes(token["bytes"]).decode("utf-8", "backslashreplace")


class Shape(ABC):
    """The choices of one request."""

    prefix: str
    object: str
    chunk_object: str

    def __init__(self, pendings: list[Pending]):
        self.pendings = pendings
        self._told = [0] * len(pendings)  # so many of a choice's tokens have had their logprobs told in a chunk
        version = pendings[0].route.version
        self.head = {
            "id": f"{self.prefix}-{pendings[0].id}", "created": int(time.time()), "model": version.name, "system_fingerprint": version.pk,
        }  # fmt: skip

    def usage(self) -> dict:
        """The prompt counts once, however many answers it has."""
        prompt, completion = self.pendings[0].prompt_tokens, sum(pending.completion_tokens for pending in self.pendings)
        return {
            "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.pendings[0].reused_tokens},
        }  # fmt: skip

    def whole(self) -> dict:
        choices = [
            {"index": number, **self.said(p.text), "logprobs": self._scores(p, 0), "finish_reason": finish_reason_of(p)}
            for number, p in enumerate(self.pendings)
        ]  # fmt: skip
        return {**self.head, "object": self.object, "choices": choices, "usage": self.usage()}

    def chunk(self, number: int, piece: dict, finish_reason: str | None = None) -> dict:
        """A part of choice `number`, with the logprobs of all tokens that came since the last one."""
        pending = self.pendings[number]
        since, self._told[number] = self._told[number], len(pending.logprobs)
        scores = self._scores(pending, since) if self._told[number] > since else None
        return self.bare_chunk(number, piece, scores, finish_reason)

    def bare_chunk(self, number: int, piece: dict, scores: dict | None = None, finish_reason: str | None = None) -> dict:
        return {
            **self.head, "object": self.chunk_object, "choices": [{"index": number, **piece, "logprobs": scores, "finish_reason": finish_reason}],
        }  # fmt: skip

    def _scores(self, pending: Pending, since: int) -> dict | None:
        return None if pending.question.logprobs is None else self.logprobs(pending.logprobs, since)

    @abstractmethod
    def logprobs(self, tokens: list[dict], since: int) -> dict:
        """Those of the tokens from `since` on."""

    @abstractmethod
    def said(self, text: str) -> dict: ...

    def opening(self) -> dict | None:
        return None

    @abstractmethod
    def piece(self, text: str) -> dict: ...

    @abstractmethod
    def closing(self) -> dict: ...


class ChatShape(Shape):
    prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def logprobs(self, tokens: list[dict], since: int) -> dict:
        def written(token: dict) -> dict:
            return {"token": token_text(token), "logprob": token["logprob"], "bytes": token["bytes"]}

        content = [{**written(token), "top_logprobs": [written(other) for other in token["top"]]} for token in tokens[since:]]
        return {"content": content, "refusal": None}

    def said(self, text: str) -> dict:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def opening(self) -> dict:
        return {"delta": {"role": "assistant", "content": ""}}

    def piece(self, text: str) -> dict:
        return {"delta": {"content": text}}

    def closing(self) -> dict:
        return {"delta": {}}


class CompletionShape(Shape):
    prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def logprobs(self, tokens: list[dict], since: int) -> dict:
        texts = [token_text(token) for token in tokens]
        offset, offsets = sum(map(len, texts[:since])), []
        for text in texts[since:]:
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": texts[since:],
            "token_logprobs": [token["logprob"] for token in tokens[since:]],
            "top_logprobs": [{token_text(other): other["logprob"] for other in (*token["top"], token)} for token in tokens[since:]],
            "text_offset": offsets,
        }

    def said(self, text: str) -> dict:
        return {"text": text}

    def piece(self, text: str) -> dict:
        return {"text": text}

    def closing(self) -> dict:
        return {"text": ""}
