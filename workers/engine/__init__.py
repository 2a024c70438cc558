"""Continuous-batching inference: sequences join and leave between two forwards of one model.

    Sequence    one question and its answer so far          (sequence.py)
    Scheduler   who waits, who has a slot, what runs next    (scheduler.py; waiting.py: whose turn it is, slots.py: what is reused,
                                                         memory.py: what keys and values may take)
    Runner      the model: chunks of tokens → logits         (runner.py)
    Engine      the thread: schedule → run → postprocess     (engine.py)

Runners: the decoder as one compiled function on a CPU (fused_runner.py), PyTorch elsewhere (torch_runner.py), INT8 and ONNX in
`workers.compression`. Nothing here imports torch until `open_engine` meets a folder or a device that needs it.
"""

from workers.engine.engine import Engine, EngineStats
from workers.engine.errors import (
    CacheTooSmall,
    EngineClosed,
    EngineError,
    EngineFull,
    ParameterRefused,
    PictureRefused,
    PromptTooLong,
    UnusableModel,
)  # fmt: skip
from workers.engine.memory import KeysAndValues
from workers.engine.opening import open_engine
from workers.engine.runner import Chunk, Logits, Runner
from workers.engine.sampling import SamplingParams, TokenLogprob
from workers.engine.sequence import Completion, Ticket

__all__ = [
    "CacheTooSmall", "Chunk", "Completion", "Engine", "EngineClosed", "EngineError", "EngineFull", "EngineStats", "KeysAndValues", "Logits",
    "ParameterRefused", "PictureRefused", "PromptTooLong", "Runner", "SamplingParams", "Ticket", "TokenLogprob", "UnusableModel", "open_engine",
]  # fmt: skip
