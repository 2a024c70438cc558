"""`python -m workers.compression.ahead`: compile the INT8 decoder, so that the first INT8 version of this machine need not wait for it.

Takes about twenty seconds of one core, once for an installation; a second call finds the result beside the package.
"""

import logging
import tempfile
import time
from contextlib import closing
from pathlib import Path

import torch

from workers.compression import quantization
from workers.compression.runners import open_runner
from workers.engine.runner import Chunk
from workers.moe import ChatTokenizer, Decoder, ModelConfig, export_tensors, save_tensors


def compile_ahead() -> None:
    """One forward of a tiny random model: the compiled code is the same for every shape."""
    tokenizer = ChatTokenizer.train(["one two"], 300)
    config = ModelConfig(tokenizer.vocab_size, 32, 1, 2, 1, 16, 32, 2, 1, max_seq_len=16)
    model = Decoder(config)
    model.initialise(torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        stored = quantization.encode(export_tensors(config, {k: v.detach() for k, v in model.state_dict().items()}))
        save_tensors(folder, quantization.describe_quantized(config, tokenizer, stored), stored, tokenizer, "")
        runner = open_runner(folder, threads=1, max_batch=1, max_seq_len=16)
        assert runner is not None
        with closing(runner):
            runner.forward([Chunk(0, 0, [1, 2])])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    began = time.monotonic()
    compile_ahead()
    logging.getLogger(__name__).info("The INT8 decoder is compiled (%.1f s).", time.monotonic() - began)
