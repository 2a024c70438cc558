"""Tokenizers that came with other people's models: their own special tokens, and their own chat template.

A template is a program by somebody else: it runs in Jinja's sandbox, and what people write cannot become a special token in it.
"""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from workers.moe.tokenizer import ROLES, ChatTokenizer, Message, NoPictures, TemplateRefused

# For a model that was never taught to converse: what was said, a line each.
NO_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
CONFIG_FILE, TEMPLATE_FILE = "tokenizer_config.json", "chat_template.jinja"

# What stands for a special token that somebody wrote, while the template runs: private-use characters around its number.
_MARK = re.compile("\ue000([0-9]+)\ue001")


class ForeignTokenizer(ChatTokenizer):
    """As `ChatTokenizer`, for any fast tokenizer that names a token which ends an answer."""

    def __init__(self, tokenizer: Tokenizer, settings: dict[str, Any], template: str | None, end_ids: Sequence[int]):
        """`settings`: tokenizer_config.json. `end_ids`: further ids that end an answer. ValueError where no token does."""
        self._template_tokenizer = tokenizer  # reads special tokens, as templates write them
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.encode_special_tokens = True  # in what people write they are text
        self._settings = settings
        self._template_text = template
        named = {name: tokenizer.token_to_id(token) for name in ("eos", "bos", "pad") if (token := _token(settings, f"{name}_token"))}
        ends = [i for i in (named.get("eos"), *end_ids) if i is not None and tokenizer.id_to_token(i) is not None]
        if not ends:
            raise ValueError("it names no token that ends an answer (eos_token), or one that it does not have")
        self.end_id: int = ends[0]
        self.end_ids = frozenset(ends)
        begin, pad = named.get("bos"), named.get("pad")
        self.begin_id = self.end_id if begin is None else begin
        self.pad_id = self.end_id if pad is None else pad
        self.image_id = None
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special) | self.end_ids
        written = [t.content for t in added.values() if t.special or t.content in (template or "")]
        self._markers = re.compile("|".join([*(re.escape(t) for t in sorted(written, key=len, reverse=True)), "[\ue000\ue001]"]))
        self._vocab_size = 1 + max(tokenizer.get_vocab().values())
        self._is_byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer.to_str()).get("decoder"))

    @classmethod
    def open(cls, folder: Path, tokenizer: Tokenizer) -> "ForeignTokenizer":
        settings = _read_json(folder / CONFIG_FILE)
        settings.pop("auto_map", None)  # names somebody's Python
        template = _template_of(settings)
        if (folder / TEMPLATE_FILE).exists():
            template = (folder / TEMPLATE_FILE).read_text()
        ends: list[int] = []
        for file in ("generation_config.json", "config.json"):
            found = _read_json(folder / file).get("eos_token_id")
            ends += found if isinstance(found, list) else [] if found is None else [found]
        return cls(tokenizer, settings, template, ends)

    def save(self, folder: Path, max_seq_len: int) -> None:
        self._template_tokenizer.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self._settings, "model_max_length": max_seq_len}
        settings.pop("chat_template", None)
        if self._template_text is not None:
            settings["chat_template"] = self._template_text
        (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=1) + "\n")

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: other people's vocabularies have gaps."""
        return self._vocab_size

    def encode_prompt(self, messages: Sequence[Message], image_tokens: int = 0) -> list[int]:
        """As the model's own template writes it. KeyError for a role that is none, TemplateRefused where the template says no; NoPictures."""
        for message in messages:
            ROLES[message["role"]]  # KeyError
            if message.get("image"):
                raise NoPictures("This model reads text only: it was trained without pictures.")
        written: list[str] = []

        def mark(found: re.Match[str]) -> str:
            written.append(found.group())
            return f"\ue000{len(written) - 1}\ue001"

        said = [{"role": m["role"], "content": self._markers.sub(mark, m["content"].strip())} for m in messages]
        parts = _MARK.split(self._render(said))
        ids: list[int] = []
        for at, part in enumerate(parts):
            if at % 2:
                token = written[int(part)]  # in two parts, neither of which is the token
                ids += [i for half in (token[:1], token[1:]) for i in self.encode(half)]
            elif part:
                ids += self._template_tokenizer.encode(part, add_special_tokens=False).ids
        return ids

    def _render(self, messages: list[dict[str, str]]) -> str:
        tokens = {f"{name}_token": _token(self._settings, f"{name}_token") or "" for name in ("bos", "eos", "pad", "unk")}
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, tools=None, documents=None, **tokens)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, RecursionError) as error:
            raise TemplateRefused(f"The model's chat template does not take this conversation: {error}") from error

    @cached_property
    def _template(self) -> jinja2.Template:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        try:
            return environment.from_string(self._template_text or NO_TEMPLATE)
        except jinja2.TemplateError as error:
            raise TemplateRefused(f"The model's chat template cannot be read: {error}") from error

    def spell(self, token_id: int) -> bytes:
        """As `ChatTokenizer.spell`. In a vocabulary of SentencePiece's kind ▁ is a space, and <0x0A> a byte."""
        if self._is_byte_level:
            return super().spell(token_id)
        if token_id in self._special_ids:
            return b""
        token = self.token_text(token_id)
        if byte := re.fullmatch("<0x([0-9A-F]{2})>", token):
            return bytes.fromhex(byte.group(1))
        return token.replace("▁", " ").encode()


class _Generation(Extension):
    """`{% generation %}`, with which transformers marks what an assistant says: here it marks nothing."""

    tags = {"generation"}

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _token(settings: dict[str, Any], name: str) -> str | None:
    value = settings.get(name)
    return value.get("content") if isinstance(value, dict) else value


def _template_of(settings: dict[str, Any]) -> str | None:
    """One template, or several with names, of which one is the default."""
    template = settings.get("chat_template")
    if isinstance(template, list):
        return {t["name"]: t["template"] for t in template}.get("default")
    return template


def _read_json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text()) if path.exists() else {}
    return value if isinstance(value, dict) else {}
