"""Text to ids and back, and the one place that knows how a question is formatted.

`encode_prompt` and the Jinja template written beside the tokenizer give the same ids (a test holds it), so that trainer,
evaluation, engine, export and any other server ask in the same way:

    <|user|>What is …?<|assistant|>It is …<|end|>

A picture stands before its question as so many `<|image|>` tokens as it has patches; the model's front end fills them. Only a
tokenizer that was trained with pictures has the token.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads would take the cores that PyTorch was promised

PAD, BEGIN, END, SYSTEM, USER, ASSISTANT = SPECIAL_TOKENS = (
    "<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>",
)  # fmt: skip
IMAGE = "<|image|>"
ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# A word with the space before it; three digits; a Chinese character alone or joined by merges within a run; other marks.
_PIECES = Regex(r"'(?:[sdmt]|ll|ve|re)| ?\p{Latin}+| ?[\p{L}\p{M}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def _byte_alphabet() -> dict[str, int]:
    """The letters by which a byte-level vocabulary writes bytes (GPT-2's `bytes_to_unicode`): printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_alphabet()

Message = dict[str, str]  # role, content, and image where there is one


def asking(question: str, image: str | None = None) -> Message:
    """The message of one who asks, about a picture where one is given."""
    return {"role": "user", "content": question, **({"image": image} if image else {})}


class NoPictures(ValueError):
    """A conversation has a picture, and the model no image front end."""


class TemplateRefused(ValueError):
    """A model's own chat template cannot be read, or does not take a conversation. The message says why."""


class ChatTokenizer:
    """A byte-level BPE with special tokens for the turns of a conversation. Any text can be encoded, and comes back as it was (in NFC)."""

    def __init__(self, tokenizer: Tokenizer):
        special = {t: number for t in SPECIAL_TOKENS if (number := tokenizer.token_to_id(t)) is not None}
        if missing := [t for t in SPECIAL_TOKENS if t not in special]:
            raise ValueError(f"the vocabulary lacks the special tokens {', '.join(missing)}")
        # Special tokens in a text are text: a question must not be able to write the assistant's turn.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.pad_id, self.begin_id, self.end_id = special[PAD], special[BEGIN], special[END]
        self.end_ids = frozenset([self.end_id])
        self.image_id: int | None = tokenizer.token_to_id(IMAGE)
        self._role_ids = {role: special[token] for role, token in ROLES.items()}
        self._special_ids = frozenset([*special.values(), *([] if self.image_id is None else [self.image_id])])

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, pictures: bool = False) -> "ChatTokenizer":
        """Learn at most `vocab_size` tokens (a small text gives fewer) from `texts`. `pictures`: with a token for their patches."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(_PIECES, behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            special_tokens=[AddedToken(t, special=True, normalized=False) for t in (*SPECIAL_TOKENS, *([IMAGE] if pictures else []))],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, folder: Path) -> "ChatTokenizer":
        """Ours, or the one that came with somebody else's model (`workers.moe.foreign`). ValueError where it ends no answer."""
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        if all(tokenizer.token_to_id(token) is not None for token in SPECIAL_TOKENS):
            return cls(tokenizer)
        from workers.moe.foreign import ForeignTokenizer  # it is one of these, and needs Jinja

        return ForeignTokenizer.open(folder, tokenizer)

    def save(self, folder: Path, max_seq_len: int) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, with the chat template, as `transformers` reads them."""
        self._tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(self._config(max_seq_len), indent=1) + "\n")

    def _config(self, max_seq_len: int) -> dict[str, Any]:
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_seq_len,
            "pad_token": PAD,
            "bos_token": BEGIN,
            "eos_token": END,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out; bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode([i for i in ids if i not in self._special_ids], skip_special_tokens=True)

    def token_text(self, token_id: int) -> str:
        """One token as written in the vocabulary."""
        return self._tokenizer.id_to_token(token_id) or ""

    def spell(self, token_id: int) -> bytes:
        """The bytes of a token, as `decode` joins them. Special tokens have none, nor have ids of a vocabulary that was rounded up."""
        if token_id >= self.vocab_size or not self.decode([token_id]):
            return b""
        letters = self.token_text(token_id)
        if all(letter in _BYTES for letter in letters):
            return bytes(_BYTES[letter] for letter in letters)
        return letters.encode()

    def encode_prompt(self, messages: Sequence[Message], image_tokens: int = 0) -> list[int]:
        """The conversation so far, up to where the answer begins. `messages`: {"role", "content"}; KeyError for another role.

        Where a message has an `image`, `image_tokens` of its tokens hold the place of it; NoPictures where that is 0.
        """
        ids: list[int] = []
        for message in messages:
            ids.append(self._role_ids[message["role"]])
            if message.get("image"):
                if self.image_id is None or not image_tokens:
                    raise NoPictures("This model reads text only: it was trained without pictures.")
                ids += [self.image_id] * image_tokens
            ids += self.encode(message["content"].strip())
            if message["role"] == "assistant":
                ids.append(self.end_id)
        return [*ids, self._role_ids["assistant"]]

    def encode_example(self, question: str, answer: str, image: str | None = None, image_tokens: int = 0) -> tuple[list[int], list[bool]]:
        """A question with its answer, and which of the ids are to be learnt: the answer's and the end. NoPictures."""
        prompt = self.encode_prompt([asking(question, image)], image_tokens)
        learnt = [*self.encode(answer.strip()), self.end_id]
        return prompt + learnt, [False] * len(prompt) + [True] * len(learnt)

    def encode_document(self, text: str) -> tuple[list[int], list[bool]]:
        """Plain text, all of which is learnt, after the token with which a document begins."""
        learnt = [*self.encode(text.strip()), self.end_id]
        return [self.begin_id, *learnt], [False] + [True] * len(learnt)
