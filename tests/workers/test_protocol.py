"""What a child process says of its end."""

import errno
import json

import pytest
import safetensors.torch
import torch
from pydantic import BaseModel

from workers import protocol


class Nothing(BaseModel):
    pass


@pytest.fixture
def end_of(tmp_path, monkeypatch, capfdbinary):
    """Run a child's `main` here; its last event."""
    monkeypatch.setattr(protocol, "die_with_parent", lambda: None)
    monkeypatch.setattr(protocol.signal, "signal", lambda *_: None)
    (tmp_path / "spec.json").write_text("{}")
    monkeypatch.setattr(protocol.sys, "argv", ["worker", str(tmp_path / "spec.json")])

    def end(main) -> dict:
        with pytest.raises(BaseException):  # noqa: B017 - the exit, or our own fault's traceback
            protocol.run(main, Nothing)
        return json.loads(capfdbinary.readouterr().out.splitlines()[-1])

    return end


def test_what_the_system_refuses_is_told_whoever_met_it(end_of, tmp_path):
    """safetensors and tokenizers, in Rust, have exceptions of their own for it."""

    def by_python(spec):
        raise OSError(errno.ENOENT, "No such file or directory")

    def by_safetensors(spec):
        safetensors.torch.save_file({"weight": torch.zeros(4)}, tmp_path / "no such folder" / "weights")

    def by_tokenizers(spec):
        raise Exception("No such file or directory (os error 2)")  # noqa: TRY002 - as it does

    for main in (by_python, by_safetensors, by_tokenizers):
        told = end_of(main)
        assert (told["event"], told["message"]) == (
            "error", "A file could not be read or written: No such file or directory. Check the disk, then resume the job."
        )  # fmt: skip


def test_another_fault_is_left_to_its_traceback(end_of, capfdbinary):
    def main(spec):
        protocol.emit("progress", progress=0.5)
        raise ValueError("a fault of ours")

    assert end_of(main)["event"] == "progress"


def test_memory_that_runs_out_is_told_whoever_asked_for_it(end_of):
    def by_pytorch(spec):
        torch.empty(1 << 60)

    def by_python(spec):
        raise MemoryError

    for main in (by_pytorch, by_python):
        assert end_of(main)["message"].startswith("The machine ran out of memory.")
