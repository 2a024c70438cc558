"""How much of a conversation a model can read: the newest turns that fit, counted with the model's own tokenizer."""

from functools import lru_cache

from tokenizers import Tokenizer

from apps import artifacts
from apps.registry.models import ModelVersion
from apps.serving.pictures import MAX_PICTURES, tokens_a_picture
from apps.serving.questions import MAX_CHARACTERS, MAX_MESSAGES

TOKENS_A_TURN = 2  # the role's token, and the end of an answer
_DEFAULT_WINDOW = 512


def window_of(version: ModelVersion) -> int:
    """Tokens that question and answer may have together."""
    return int(version.config.get("max_seq_len") or version.config.get("max_position_embeddings") or _DEFAULT_WINDOW)


@lru_cache(maxsize=4)
def _tokenizer(folder: str) -> Tokenizer:
    with artifacts.open_file(f"{folder}/tokenizer.json") as file:
        return Tokenizer.from_str(file.read().decode())


def _length(version: ModelVersion, text: str) -> int:
    return len(_tokenizer(version.folder).encode(text, add_special_tokens=False)) + TOKENS_A_TURN


def within_limits(messages: list[dict]) -> list[dict]:
    """The newest messages, as many as any request may have; the last one is always there."""
    kept, characters, pictures = [], 0, 0
    for message in reversed(messages[-MAX_MESSAGES:]):
        characters += len(message["content"])
        pictures += bool(message.get("image"))
        if kept and (characters > MAX_CHARACTERS or pictures > MAX_PICTURES):
            break
        kept.insert(0, message)
    return _from_a_question(kept)


def fitted(messages: list[dict], version: ModelVersion, max_tokens: int) -> list[dict]:
    """Leave out the oldest turns until the rest, and an answer of `max_tokens`, fit the model. The last question always stays.

    A version that was trained here is asked with no more turns than it was trained with: more would confuse it.
    """
    if turns := version.details.get("turns"):
        messages = messages[-(2 * int(turns) - 1) :]
    window = window_of(version)
    left = window - min(max_tokens, window // 2)
    try:
        lengths = [_length(version, message["content"]) + (tokens_a_picture(version) if message.get("image") else 0) for message in messages]
    except FileNotFoundError:  # imported without a tokenizer.json: the engine decides
        return messages
    first = len(messages) - 1
    left -= lengths[first]
    while first and lengths[first - 1] <= left:
        first -= 1
        left -= lengths[first]
    return _from_a_question(messages[first:])


def _from_a_question(messages: list[dict]) -> list[dict]:
    """A conversation that begins with half a turn would put an answer before its question."""
    first = next((index for index, message in enumerate(messages) if message["role"] != "assistant"), 0)
    return messages[first:]
