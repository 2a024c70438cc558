"""Answers of a given form: a JSON schema, or a regular expression, as a mask on the logits before each token.

The grammar, and which tokens may follow, are llguidance's; it knows the vocabulary by the bytes of its tokens.
"""

import json
import threading
from typing import Any

import llguidance
import numpy as np
from numpy.typing import NDArray

from workers.engine.errors import ParameterRefused
from workers.engine.text import Vocabulary
from workers.moe import ChatTokenizer

# Without free white space: a model that is unsure would write nothing else until its tokens are used up.
JSON_OPTIONS: Any = {"whitespace_flexible": False}
FORM = "response_format"
SPECIAL = b"\xff"  # by which llguidance tells tokens that are no text


class Constraint:
    """The form of one answer, and how far it has come."""

    def __init__(self, matcher: llguidance.LLMatcher):
        self._matcher = matcher

    def mask(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """(vocab,) logits with what may not follow ruled out, a copy. ParameterRefused where nothing may, as in a form without an end."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.zeros(len(logits), bool)
        bits = np.unpackbits(packed, bitorder="little")[: len(logits)]
        allowed[: len(bits)] = bits
        if self._matcher.is_error() or not allowed.any():
            raise _refused(self._matcher)
        return np.where(allowed, logits, np.float32(-np.inf))

    def consume(self, token: int) -> None:
        self._matcher.consume_token(token)


def _refused(matcher: llguidance.LLMatcher) -> ParameterRefused:
    """In a few words: what follows them there is the parser's state."""
    why = matcher.get_error().partition("\n<state>")[0].strip()
    return ParameterRefused(f"An answer of this form cannot be made: {why or 'nothing may follow'}"[:1000], FORM)


class Constraints:
    """Of one vocabulary. May be called from any thread."""

    def __init__(self, tokenizer: ChatTokenizer, vocabulary: Vocabulary):
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._lock = threading.Lock()
        self._known: llguidance.LLTokenizer | None = None

    def begin(self, schema: str | None, regex: str | None) -> Constraint | None:
        """None where the form is free. `schema`: JSON Schema as text. ParameterRefused for what is none, or is not understood."""
        if schema is None and regex is None:
            return None
        if schema is not None and regex is not None:
            raise ParameterRefused("Ask for a JSON schema or for a regular expression, not for both.", FORM)
        if schema is not None:
            try:
                grammar = llguidance.LLMatcher.grammar_from_json_schema(json.loads(schema), defaults=JSON_OPTIONS)
            except ValueError as error:
                raise ParameterRefused(f"The JSON schema cannot be read: {error}", FORM) from error
        else:
            assert regex is not None
            grammar = llguidance.LLMatcher.grammar_from_regex(regex)
        matcher = llguidance.LLMatcher(self._spelt(), grammar, log_level=0)
        if matcher.is_error():
            raise _refused(matcher)
        return Constraint(matcher)

    def _spelt(self) -> llguidance.LLTokenizer:
        with self._lock:
            if self._known is None:
                wrapped = llguidance.TokenizerWrapper(_Spelling(self._tokenizer, self._vocabulary))
                self._known = llguidance.LLTokenizer(wrapped, eos_token=sorted(self._tokenizer.end_ids))
            return self._known


class _Spelling:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: ChatTokenizer, vocabulary: Vocabulary):
        self._tokenizer = tokenizer
        ids = range(max(tokenizer.vocab_size, max(tokenizer.end_ids) + 1))
        self.tokens = [vocabulary.bytes_of(token) or SPECIAL + tokenizer.token_text(token).encode() for token in ids]
        self.special_token_ids = [token for token in ids if not vocabulary.bytes_of(token)]
        self.eos_token_id = min(tokenizer.end_ids)
        self.bos_token_id = None

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)
