"""Who answers in `serving.py`: our engine, transformers' `generate`, and llama.cpp in a Python of its own."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, logging

from workers.engine import Engine, SamplingParams
from workers.moe import load_tokenizer

LLAMA_CPP = Path(__file__).with_name("_llama_cpp.py")
NEEDS = ("llama_cpp", "gguf", "safetensors")
INSTALL = (
    "llama.cpp is not measured: `python -m venv PEER && PEER/bin/pip install llama-cpp-python gguf safetensors` builds it in some minutes, "
    "and `LLAMA_CPP_PYTHON=PEER/bin/python` names it to this benchmark."
)


class Peer(Protocol):
    def tokens(self, questions: list[str], tokens: int) -> list[list[int]]:
        """Greedy answers to all questions at once."""

    def seconds(self, questions: list[str], tokens: int) -> float:
        """How long answers of so many tokens took, to all questions at once."""

    def close(self) -> None: ...


def _timed(ask: Callable[[], object]) -> float:
    began = time.perf_counter()
    ask()
    return time.perf_counter() - began


class Ours:
    def __init__(self, engine: Engine):
        self._engine = engine

    def tokens(self, questions: list[str], tokens: int) -> list[list[int]]:
        tickets = [self._engine.submit(_asking(question), SamplingParams(tokens, logprobs=0)) for question in questions]
        return [[scored.token for scored in ticket.result().logprobs] for ticket in tickets]

    def seconds(self, questions: list[str], tokens: int) -> float:
        asked = [_asking(question) for question in questions]
        return _timed(lambda: self._engine.generate_all(asked, tokens))

    def close(self) -> None:
        self._engine.close()


class Transformers:
    """Experts by `grouped_mm`, attention by SDPA: on CPU its quickest ways. The prompts are equally long, so that nothing is padded."""

    def __init__(self, folder: Path):
        logging.disable_progress_bar()
        self._tokenizer = load_tokenizer(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="grouped_mm", attn_implementation="sdpa").eval()

    def tokens(self, questions: list[str], tokens: int) -> list[list[int]]:
        ids = torch.tensor([self._tokenizer.encode_prompt(_asking(question)) for question in questions])
        with torch.inference_mode():
            answers = self._model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
        return answers[:, ids.shape[1] :].tolist()

    def seconds(self, questions: list[str], tokens: int) -> float:
        return _timed(lambda: self.tokens(questions, tokens))

    def close(self) -> None:
        pass


class LlamaCpp:
    """`kind`: how its matrices are stored, F32 or Q8_0; `exact`: attention in F32 too, where by default it rounds to F16."""

    def __init__(self, folder: Path, kind: str, threads: int, python: str, *, exact: bool = False):
        self._tokenizer = load_tokenizer(folder)
        asked = [python, str(LLAMA_CPP), str(folder), kind, str(threads), "exact" if exact else "default"]
        self._process = subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        told = self._hear()
        self.version, self.bytes = told["version"], told["bytes"]

    def tokens(self, questions: list[str], tokens: int) -> list[list[int]]:
        return self._ask(questions, tokens)["answers"]

    def seconds(self, questions: list[str], tokens: int) -> float:
        return self._ask(questions, tokens)["seconds"]

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)

    def _ask(self, questions: list[str], tokens: int) -> dict[str, Any]:
        assert self._process.stdin
        prompts = [self._tokenizer.encode_prompt(_asking(question)) for question in questions]
        self._process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"llama.cpp ended with {self._process.wait()}; its own words stand above.")
        return json.loads(line)


def llama_python() -> str | None:
    """A Python that has llama-cpp-python: the one that is named, or this one."""
    if named := os.environ.get("LLAMA_CPP_PYTHON"):
        return named
    return sys.executable if all(importlib.util.find_spec(name) for name in NEEDS) else None


def _asking(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]
