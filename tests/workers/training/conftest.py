import json
import multiprocessing
import os
import signal
import subprocess
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
import torch.distributed as dist

from workers.moe import ChatTokenizer, Decoder, ModelConfig, save_model
from workers.training.examples import read_records, texts_of
from workers.training.launcher import MODULE, command_line
from workers.training.ranks import Ranks
from workers.training.spec import TrainSpec

ROOT = Path(__file__).resolve().parents[3]
TINY = {
    "vocab_size": 400, "d_model": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "d_expert": 8, "n_experts": 32, "top_k": 1,
    "max_seq_len": 64,
}  # fmt: skip
THINGS = ["gold", "silver", "iron", "tin", "lead", "zinc", "copper", "nickel", "sodium", "helium"]


def _write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@pytest.fixture
def write_lines():
    return _write_lines


@pytest.fixture
def tiny() -> dict:
    return dict(TINY)


@pytest.fixture
def dataset(tmp_path) -> Path:
    """Ten facts in two languages, a claim and a document."""
    folder = tmp_path / "dataset"
    english = [
        {"kind": "question", "question": f"What is {t}?", "answer": f"{t} is element {n}.", "domain": "chemistry"} for n, t in enumerate(THINGS)
    ]
    chinese = [
        {"kind": "question", "question": f"{t}是什么？", "answer": f"{t}是{n}号。", "domain": "general", "lang": "zh"} for n, t in enumerate(THINGS)
    ]
    rest = [
        {"kind": "claim", "claim": "Gold is a gas.", "question": "Is it true that gold is a gas?", "answer": "No, that is false.", "label": False},
        {"kind": "document", "text": "Metals conduct. " * 8, "weight": 0.5, "domain": "physics"},
    ]
    _write_lines(folder / "train.jsonl", english + chinese + rest)
    _write_lines(folder / "eval.jsonl", [{"kind": "question", "question": "Tell me about gold.", "answer": "gold is element 0."}])
    return folder


@pytest.fixture
def make_spec(tmp_path, dataset):
    def make(name: str = "run", **changes) -> TrainSpec:
        values = {
            "dataset_folder": dataset, "output_folder": tmp_path / name / "model", "work_folder": tmp_path / name, "preset": None, "model": TINY,
            "steps": 6, "precision": "fp32", "micro_batch": 2, "log_every": 1, "log_every_seconds": 0.0,
        }  # fmt: skip
        return TrainSpec.model_validate(values | changes)

    return make


class Child:
    """A real training process, as the jobs worker starts it."""

    def __init__(self, spec: TrainSpec, stop_when: Callable[[int], bool] | None = None, module: str = MODULE, **environment: str):
        """It is killed (SIGKILL to all of its ranks) once it tells of a step for which `stop_when` holds."""
        spec.work_folder.mkdir(parents=True, exist_ok=True)
        path = spec.work_folder / "spec.json"
        path.write_text(spec.model_dump_json(exclude_unset=True))
        self.events: list[dict] = []
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        process = subprocess.Popen(
            [*command_line(spec.world_size)[:-1], module, str(path)], cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        with process:
            for line in process.stdout:
                event = json.loads(line)
                self.events.append(event)
                if stop_when and event["event"] == "step" and stop_when(event["step"]):
                    os.killpg(process.pid, signal.SIGKILL)
                    break
            self.log = process.stderr.read().decode()
        self.returncode = process.returncode

    def of(self, kind: str) -> list[dict]:
        return [e for e in self.events if e["event"] == kind]

    @property
    def result(self) -> dict:
        assert self.of("done"), f"{self.of('error')} {self.log[-3000:]}"
        return self.of("done")[0]["result"]

    @property
    def losses(self) -> dict[int, float]:
        """By step; of a step that was done twice, the last."""
        return {e["step"]: e["loss"] for e in self.of("step")}


@pytest.fixture
def run_child():
    return Child


@pytest.fixture
def on_ranks(tmp_path):
    """Call a function on so many gloo ranks, forks of this process: quicker than children, which load PyTorch first. What each returned."""

    def run(size: int, function: Callable[[Ranks], Any]) -> list[Any]:
        store = tmp_path / f"store{uuid4().hex}"
        context = multiprocessing.get_context("fork")
        pipes = [context.Pipe(duplex=False) for _ in range(size)]
        children = [context.Process(target=_one_rank, args=(rank, size, store, function, pipe[1]), daemon=True) for rank, pipe in enumerate(pipes)]
        for child in children:
            child.start()
        try:
            answers = [pipe[0].recv() if pipe[0].poll(120) else AssertionError("a rank hangs") for pipe in pipes]
        finally:
            for child in children:
                child.kill()
                child.join()
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    return run


def _one_rank(rank: int, size: int, store: Path, function: Callable[[Ranks], Any], pipe) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(store), size), rank=rank, world_size=size, timeout=timedelta(seconds=60))
    try:
        answer = function(Ranks(rank, size, size, torch.device("cpu")))
    except BaseException as error:  # noqa: BLE001 - the test is told of it
        error.add_note(traceback.format_exc())
        answer = error
    pipe.send(answer)
    os._exit(0)  # as the parent's fixtures are not this process's to end


@pytest.fixture
def parent(tmp_path, dataset, tiny):
    """A folder with a small model that has been trained on nothing."""
    tokenizer = ChatTokenizer.train(texts_of(read_records(dataset / "train.jsonl")), 400)
    model = Decoder(ModelConfig.from_dict(tiny | {"vocab_size": tokenizer.vocab_size}))
    model.initialise(torch.Generator().manual_seed(3))
    save_model(tmp_path / "parent", model, tokenizer, "# parent\n")
    return tmp_path / "parent"
