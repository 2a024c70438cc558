"""The real engine on a model whose weights are a rule: it says `You asked: ` and the last question."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from workers.engine import Chunk, Engine, Logits
from workers.moe.tokenizer import ChatTokenizer

PREFIX = "You asked: "


@lru_cache(maxsize=1)
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer.train([PREFIX, "What is water? 水是什么?"] * 4, 300)


class Echo:
    """Keeps the tokens of each slot and rules out all but one next token."""

    max_batch, max_seq_len = 8, 512

    def __init__(self, words: ChatTokenizer):
        self._words = words
        self.vocab_size = words.vocab_size
        self._slots: dict[int, list[int]] = {}
        self._user, self._assistant = (words._role_ids[role] for role in ("user", "assistant"))

    def forward(self, chunks: Sequence[Chunk]) -> Logits:
        logits = np.full((len(chunks), self.vocab_size), -1e9, np.float32)
        for row, chunk in enumerate(chunks):
            known = self._slots[chunk.slot] = [*self._slots.get(chunk.slot, [])[: chunk.start], *chunk.tokens]
            logits[row, self._next(known)] = 0.0
        return logits

    def _next(self, known: list[int]) -> int:
        if self._assistant not in known:
            return self._words.end_id  # the middle of a long prompt: nobody looks
        asks = len(known) - 1 - known[::-1].index(self._assistant)
        begins = max(i for i, token in enumerate(known[:asks]) if token == self._user)
        answer = [*self._words.encode(PREFIX), *known[begins + 1 : asks], self._words.end_id]
        said = len(known) - asks - 1
        return answer[min(said, len(answer) - 1)]

    def hidden_states(self, chunk: Chunk) -> np.ndarray:
        """One dimension for each token: a text's embedding says how often it has each."""
        return np.eye(self.vocab_size, dtype=np.float32)[list(chunk.tokens)]

    def close(self) -> None:
        self._slots.clear()


def engine_that_echoes() -> Engine:
    return Engine(Echo(tokenizer()), tokenizer())
