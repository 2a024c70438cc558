"""Tokens of an answer as text that may be shown: whole characters, nothing of a stop string, no space around it."""

import codecs
from collections.abc import Sequence

from workers.moe import ChatTokenizer


class Vocabulary:
    """The bytes of each token, as its tokenizer spells it; each is spelled once."""

    def __init__(self, tokenizer: ChatTokenizer):
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        if token not in self._known:
            self._known[token] = self._tokenizer.spell(token)
        return self._known[token]


class TextStream:
    """The text of one answer as its tokens come.

    `text` is what was given out so far. Held back are: the bytes of an unfinished character, what may become a stop string, and
    spaces, which are dropped at both ends of an answer.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = ()):
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(stop)
        self._held = ""
        self.text = ""
        self.stopped = False  # a stop string came; `text` ends before it

    def add(self, tokens: Sequence[int]) -> str:
        """What may be shown now. Where there are stop strings, tokens come one by one: what follows such a string is none of the answer."""
        self._held += self._decoder.decode(b"".join(map(self._vocabulary.bytes_of, tokens)))
        if not self._stop:
            return self._give(len(self._held))
        cut = self._first_stop()
        if cut is not None:
            self.stopped = True
            self._held = self._held[:cut]
            return self._give(len(self._held))
        return self._give(len(self._held) - self._possible_stop())

    def finish(self) -> str:
        """The rest, when no token follows."""
        if not self.stopped:
            self._held += self._decoder.decode(b"", final=True)
        return self._give(len(self._held))

    def _give(self, end: int) -> str:
        """Give out the held text before `end`, but for the spaces before it: they may turn out to be the last."""
        if not self.text:
            leading = end - len(self._held[:end].lstrip())
            self._held, end = self._held[leading:], end - leading
        piece = self._held[:end].rstrip()
        self._held = self._held[len(piece) :]
        self.text += piece
        return piece

    def _first_stop(self) -> int | None:
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        return min(found, default=None)

    def _possible_stop(self) -> int:
        """How many of the last letters may be the beginning of a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest
