"""An ONNX model as the engine runs it (`workers.engine.runner`), by onnxruntime. Needs no PyTorch."""

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from workers.engine import Chunk, KeysAndValues, Logits, UnusableModel

log = logging.getLogger(__name__)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
LARGEST_DIFFERENCE = 0.1  # of a logit on two devices, as a share of the logits' deviation: more is another model, not rounding


def open_onnx_runner(folder: Path, *, threads: int, max_batch: int, max_seq_len: int, device: str = "cpu") -> "OnnxRunner":
    """UnusableModel where the folder is damaged. `device`: "cuda" (or "cuda:1") runs on that GPU where onnxruntime has CUDA; the log says where not."""
    try:
        described = json.loads((folder / "config.json").read_text())
        shape = described["num_hidden_layers"], described["num_key_value_heads"], described["head_dim"]
        vocab_size = described["vocab_size"]
    except (OSError, ValueError, KeyError) as error:
        raise UnusableModel(f"The config.json of {folder.name} does not describe a model: {error}.") from error
    try:
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), _options(threads), providers=[CPU])
    except Exception as error:  # onnxruntime has a class for each kind of fault, and no common one
        raise UnusableModel(f"The model.onnx of {folder.name} cannot be opened: {error}") from error
    if device.startswith("cuda"):
        session = _on_gpu(folder, session, shape, device, threads) or session
    return OnnxRunner(session, shape, vocab_size, max_batch, max_seq_len)


def _on_gpu(folder: Path, on_cpu: Any, shape: tuple[int, int, int], device: str, threads: int) -> Any | None:
    """A session on the GPU that says what the one on the CPU says; None where there is none, and the log says why."""
    if CUDA not in onnxruntime.get_available_providers():
        log.warning("%s runs on the CPU: onnxruntime is here without CUDA. Install onnxruntime-gpu in the place of onnxruntime.", folder.name)
        return None
    provider = CUDA, {"device_id": int(device.partition(":")[2] or 0)}
    try:
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), _options(threads), providers=[provider, CPU])
        found, wanted = (_logits(each, shape) for each in (session, on_cpu))
    except Exception as error:  # noqa: BLE001 — whatever CUDA does not take, the model answers on the CPU
        log.warning("%s runs on the CPU: CUDA does not take it: %s", folder.name, error)
        return None
    # onnxruntime's own operators have other kernels there, some for other layouts of weights: a model that answers otherwise is not served.
    if not np.abs(found - wanted).max() < LARGEST_DIFFERENCE * wanted.std():
        log.warning("%s runs on the CPU: onnxruntime's CUDA kernels give other logits for it.", folder.name)
        return None
    return session


def _logits(session: Any, shape: tuple[int, int, int]) -> Logits:
    """Of the first tokens of the vocabulary, read as a text."""
    layers, kv_heads, head_dim = shape
    ids = np.arange(8, dtype=np.int64)[None]
    past = np.zeros((1, kv_heads, 0, head_dim), np.float32)
    inputs: dict[str, Any] = {"input_ids": ids, "position_ids": ids, "attention_mask": np.ones_like(ids)}
    inputs |= {f"past_key_values.{layer}.{part}": past for layer in range(layers) for part in ("key", "value")}
    logits: Logits = session.run(["logits"], inputs)[0]
    return logits


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A thread that waits by spinning takes the core from the web process and from training.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


LEAST_PAST = 256  # tokens; shorter pasts share a call, which is mostly quicker than two without padding (docs/decisions/onnx-operators.md)
COPIES = 2  # of what a slot holds: the graph takes its past as a tensor of its own, and gives it back with what is new


class OnnxRunner:
    """Chunks of one length, with pasts of about the same, share a call; shorter pasts are padded at their end, and masked.

    Slots take memory as they fill. What a call copies counts with them, padding too: each past as `_padded` has it.
    """

    def __init__(self, session: Any, shape: tuple[int, int, int], vocab_size: int, max_batch: int, max_seq_len: int):
        self.max_batch, self.max_seq_len, self.vocab_size = max_batch, max_seq_len, vocab_size
        self._session = session
        layers, kv_heads, head_dim = shape
        self._token_bytes = 4 * 2 * layers * kv_heads * head_dim
        self._slots = KeysAndValues(layers, max_batch, kv_heads, head_dim, max_seq_len, 1)
        parts = {"key": self._slots.keys[..., 0], "value": self._slots.values}  # layers, slots, kv_heads, tokens, head_dim
        self._past = [(f"past_key_values.{layer}.{part}", array[layer]) for layer in range(layers) for part, array in parts.items()]

    def forward(self, chunks: Sequence[Chunk]) -> Logits:
        logits = np.empty((len(chunks), self.vocab_size), np.float32)
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, chunk in enumerate(chunks):
            groups[len(chunk.tokens), _padded(chunk.start)].append(number)
        for numbers in groups.values():
            logits[numbers] = self._run([chunks[n] for n in numbers])
        return logits

    def _run(self, chunks: list[Chunk]) -> Logits:
        """Logits after each of the chunks, which are of one length."""
        length, past = len(chunks[0].tokens), max(c.start for c in chunks)
        slots = np.array([c.slot for c in chunks])
        starts = np.array([c.start for c in chunks])[:, None]
        mask = np.ones((len(chunks), past + length), np.int64)
        mask[:, :past] = np.arange(past) < starts
        inputs: dict[str, Any] = {name: held[slots, :, :past] for name, held in self._past}
        inputs |= {"input_ids": np.array([c.tokens for c in chunks], np.int64), "position_ids": starts + np.arange(length), "attention_mask": mask}
        logits, *present = self._session.run(None, inputs)
        for (_, held), whole in zip(self._past, present, strict=True):
            for row, chunk in enumerate(chunks):
                held[chunk.slot, :, chunk.start : chunk.start + length] = whole[row, :, past:]
        last: Logits = logits[:, -1]
        return last

    def bytes_of(self, tokens: int) -> int:
        return self._slots.bytes_of(tokens) + COPIES * self._token_bytes * min(_padded(tokens), self.max_seq_len) if tokens else 0

    def empty(self, slot: int) -> None:
        self._slots.empty(slot)

    def close(self) -> None:
        del self._session, self._past, self._slots


def _padded(tokens: int) -> int:
    """The next power of two: the longest past that shares a call with this one."""
    return max(LEAST_PAST, 1 << (tokens - 1).bit_length()) if tokens else LEAST_PAST
