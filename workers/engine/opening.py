"""A model folder becomes an engine: which runner serves it, and how many sequences its memory allows."""

import json
import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from workers.engine.depth import DEPTHS
from workers.engine.engine import Engine
from workers.engine.errors import UnusableModel
from workers.engine.front_end import read_front_end
from workers.engine.memory import CacheMemory
from workers.engine.runner import Chunk, Runner
from workers.moe import ChatTokenizer, ModelConfig, UnsupportedModel, layout_named, quantization_of
from workers.upstream.spec import is_upstream

log = logging.getLogger(__name__)

CACHE_BYTES = 512 * 1024**2  # what keys and values of all slots may take together, where nothing else is said
ONNX_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"


def open_engine(
    folder: Path, threads: int = 1, *, max_batch: int = 32, max_waiting: int = 256, max_seq_len: int = 4096, device: str = "cpu",
    cache_bytes: int = CACHE_BYTES, draft: Path | None = None, endless: bool = False,
) -> Engine:  # fmt: skip
    """Load any kind of model folder. `threads`: cores it may use. UnusableModel where the folder is damaged or of no known kind.

    `max_seq_len` cuts a longer context. `cache_bytes`: what keys and values may take. On a CPU there are `max_batch` slots that take memory as they
    fill (`memory.py`); on another device all have theirs from the beginning: fewer, or shorter where not even one of the whole length fits.
    `device`: "cpu", or another of PyTorch's ("cuda").
    A folder that only says where another server holds the model needs none of these: its engine is `workers.upstream`'s.
    `draft`: the folder of a smaller model of the same tokenizer, which guesses ahead (`drafter.py`); one that cannot is left out, and the log says why.
    `endless`: no token ends an answer, so that all are as long as asked for: to measure by.
    """
    if is_upstream(folder):
        elsewhere: Engine = import_module("workers.upstream.engine").open_upstream(folder, max_waiting=max_waiting)
        return elsewhere
    described = _read_config(folder)
    tokenizer = _load_tokenizer(folder)
    if endless:
        tokenizer.end_ids = frozenset()
    config = _understand(folder, described)
    length = min(max_seq_len, config.max_seq_len)
    drafting = _drafting(folder, draft) if draft else None
    token_bytes = 4 * config.cached_numbers_a_token
    full_bytes = token_bytes + (4 * drafting.cached_numbers_a_token if drafting else 0)
    slots = max_batch
    if not _fills_slots(folder, device):
        length = max(1, min(length, cache_bytes // full_bytes))
        slots = max(1, min(max_batch, cache_bytes // (length * full_bytes)))
    runner = _open_runner(folder, described, config, device, threads=threads, max_batch=slots, max_seq_len=length)
    _warm_up(runner)
    if tokenizer.vocab_size > runner.vocab_size:  # compiled code looks ids up without asking
        runner.close()
        raise UnusableModel(f"The tokenizer of {folder.name} has {tokenizer.vocab_size:,} tokens, its model only {runner.vocab_size:,}.")
    # An ONNX runner takes tokens only: what it serves is a model of text.
    front_end = read_front_end(folder, described["hidden_size"]) if getattr(runner, "takes_rows", False) else None
    guesser = _open_draft(draft, drafting, runner, device, threads) if draft and drafting else None
    memory = _memory(runner, guesser, cache_bytes, token_bytes, full_bytes)
    return Engine(runner, tokenizer, max_waiting=max_waiting, front_end=front_end, memory=memory, draft=guesser)


def _fills_slots(folder: Path, device: str) -> bool:
    """Its slots take memory as they fill: all that run in the machine's own."""
    return device == "cpu" or (folder / ONNX_FILE).exists()


def _memory(runner: Runner, draft: Runner | None, cache_bytes: int, token_bytes: int, full_bytes: int) -> CacheMemory:
    """Of a runner whose slots have all their memory from the beginning, what they have is the budget. `full_bytes`: of a token, with its draft's."""
    own, drafts = _bytes_of(runner, token_bytes), _bytes_of(draft, full_bytes - token_bytes) if draft else None

    def bytes_of(tokens: int) -> int:
        """Guesses lie in the slots too, before it is known whether they are right."""
        if drafts is None or draft is None or not tokens:
            return own(tokens)
        return own(min(tokens + DEPTHS[-1], runner.max_seq_len)) + drafts(min(tokens + DEPTHS[-1], draft.max_seq_len))

    if hasattr(runner, "bytes_of"):
        total = min(cache_bytes, runner.max_batch * bytes_of(runner.max_seq_len))
    else:
        total = runner.max_batch * runner.max_seq_len * full_bytes
    return CacheMemory(total, bytes_of, runner.max_batch, runner.max_seq_len)


def _bytes_of(runner: Runner, token_bytes: int) -> Callable[[int], int]:
    given: Callable[[int], int] = getattr(runner, "bytes_of", lambda tokens: tokens * token_bytes)
    return given


def _drafting(folder: Path, draft: Path) -> ModelConfig | None:
    """The draft's configuration; None where it cannot be one: then the model answers without."""
    try:
        if (draft / TOKENIZER_FILE).read_bytes() != (folder / TOKENIZER_FILE).read_bytes():
            raise UnusableModel(f"{draft.name} has another tokenizer than {folder.name}")
        return _understand(draft, _read_config(draft))
    except (UnusableModel, OSError) as error:
        log.warning("%s answers without a draft: %s", folder.name, error)
        return None


def _open_draft(folder: Path, config: ModelConfig, teacher: Runner, device: str, threads: int) -> Runner | None:
    """None where it does not fit `teacher`, or its folder is damaged."""
    if not getattr(teacher, "reads_guesses", False):
        log.warning("%s drafts for nobody: this kind of model reads no guesses", folder.name)
        return None
    try:
        length = min(teacher.max_seq_len, config.max_seq_len)
        runner = _open_runner(folder, _read_config(folder), config, device, threads=threads, max_batch=teacher.max_batch, max_seq_len=length)
    except UnusableModel as error:
        log.warning("%s drafts for nobody: %s", folder.name, error)
        return None
    if runner.vocab_size != teacher.vocab_size:  # a guess that the model has no embedding of would lead compiled code out of its memory
        runner.close()
        log.warning("%s drafts for nobody: its vocabulary is padded to another size", folder.name)
        return None
    _warm_up(runner)
    return runner


def _warm_up(runner: Runner) -> None:
    """Whatever a runner's first forward costs (loading compiled code takes a third of a second), no question waits for it."""
    runner.forward([Chunk(slot=0, start=0, tokens=[0])])
    if hasattr(runner, "empty"):
        runner.empty(0)


def _open_runner(
    folder: Path, described: dict[str, Any], config: ModelConfig, device: str, *, threads: int, max_batch: int, max_seq_len: int
) -> Runner:
    """Compiled code only for what it expresses: it would give wrong answers to the rest. The imports are here because each runner's are its own: torch, onnxruntime and numba take up to 200 MB and a second."""
    is_onnx = (folder / ONNX_FILE).exists()
    if is_onnx or described.get("storage"):
        compression = import_module("workers.compression")
        own: Runner | None = compression.open_runner(folder, threads=threads, max_batch=max_batch, max_seq_len=max_seq_len, device=device)
        if own is not None:
            return own
        if is_onnx:
            raise UnusableModel(f"The {ONNX_FILE} of {folder.name} cannot be served.")
    if device != "cpu" or config.special_features:
        from workers.engine.torch_runner import open_torch_runner

        return open_torch_runner(folder, device, threads=threads, max_batch=max_batch, max_seq_len=max_seq_len)
    from workers.engine.fused_runner import FusedRunner
    from workers.engine.fused_weights import decode_weights, read_weights

    weights = decode_weights(folder) if described.get("storage") or quantization_of(described) else read_weights(folder, described)
    return FusedRunner(weights, threads=threads, max_batch=max_batch, max_seq_len=max_seq_len)


def _understand(folder: Path, described: dict[str, Any]) -> ModelConfig:
    try:
        quantization_of(described)
        return layout_named(described.get("model_type")).read_config(described)
    except UnsupportedModel as error:
        raise UnusableModel(str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise UnusableModel(f"The config.json of {folder.name} does not describe a model: {error}.") from error


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        described = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise UnusableModel(f"{folder.name} is not a model folder: it has no config.json.") from error
    except ValueError as error:
        raise UnusableModel(f"The config.json of {folder.name} is not valid JSON: {error}.") from error
    if not isinstance(described, dict):
        raise UnusableModel(f"The config.json of {folder.name} is not a JSON object.")
    return described


def _load_tokenizer(folder: Path) -> ChatTokenizer:
    try:
        return ChatTokenizer.load(folder)
    except Exception as error:
        raise UnusableModel(f"The tokenizer.json of {folder.name} cannot be read: {error}.") from error
