import json
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from workers.compression.int8 import run_int8
from workers.compression.onnx_export import run_onnx
from workers.compression.runners import open_runner
from workers.engine import Chunk, UnusableModel, open_engine


def test_logits_are_the_models_with_and_without_a_past(any_model, save, spec, tokenizer, prompts):
    run_onnx(made := spec("onnx", save(any_model)))
    onnx.checker.check_model(str(made.output_folder / "model.onnx"), full_check=True)
    sequences = [tokenizer.encode_prompt(prompt)[:length] for prompt, length in zip(prompts, (9, 5, 9, 7, 3, 8), strict=True)]
    with closing(open_runner(made.output_folder, threads=1, max_batch=8, max_seq_len=96)) as runner:
        found = runner.forward([Chunk(slot, 0, tokens) for slot, tokens in enumerate(sequences)])
        after = runner.forward([Chunk(slot, len(tokens), [11]) for slot, tokens in enumerate(sequences)])  # pasts of several lengths in one call
    with torch.inference_mode():
        for tokens, first, second in zip(sequences, found, after, strict=True):
            np.testing.assert_allclose(first, any_model(torch.tensor([tokens]))[0, -1].numpy(), atol=1e-4)
            np.testing.assert_allclose(second, any_model(torch.tensor([[*tokens, 11]]))[0, -1].numpy(), atol=1e-4)


def test_greedy_answers_through_the_engine_are_the_parents(make_model, save, spec, prompts):
    parent = save(make_model())
    result = run_onnx(made := spec("onnx", parent))
    texts = []
    for folder in (parent, made.output_folder):
        with closing(open_engine(folder)) as engine:
            texts.append([c.text for c in engine.generate_all(prompts, max_tokens=16)])
    assert texts[0] == texts[1]
    assert result["details"]["greedy_agreement"] == 1.0


def test_slots_share_a_budget_and_answers_are_the_same(make_model, save, spec, prompts):
    run_onnx(made := spec("onnx", save(make_model(max_seq_len=2048, head_dim=32))))
    with closing(open_engine(made.output_folder, max_batch=8)) as engine:
        assert engine.stats().slots == 8
        wanted = [a.text for a in engine.generate_all(prompts, max_tokens=70)]
        budget_bytes = 3 * engine._runner.bytes_of(50)
        assert budget_bytes < 3 * engine._runner.bytes_of(80)  # more begin than can go on

    with closing(open_engine(made.output_folder, max_batch=8, cache_bytes=budget_bytes)) as engine:
        assert [a.text for a in engine.generate_all(prompts, max_tokens=70)] == wanted
        stats = engine.stats()
        assert stats.preemptions
        assert 0 < stats.cache_used_bytes <= stats.cache_total_bytes == budget_bytes


def test_what_a_call_copies_counts_with_what_its_slots_hold(make_model, save, spec, monkeypatch):
    """However different the pasts are that decode together."""
    run_onnx(made := spec("onnx", save(make_model(max_seq_len=2048, head_dim=32))))
    starts = [1, 3, 60, 70, 120, 500, 513, 1500]
    with closing(open_runner(made.output_folder, threads=1, max_batch=8, max_seq_len=2048)) as runner:
        copied, run = [], runner._session.run

        def counting(names, inputs):
            out = run(names, inputs)
            copied.append(sum(array.nbytes for name, array in inputs.items() if name.startswith("past")) + sum(array.nbytes for array in out[1:]))
            return out

        monkeypatch.setattr(runner, "_session", SimpleNamespace(run=counting))
        runner.forward([Chunk(slot, start, [5]) for slot, start in enumerate(starts)])
        held = [runner._slots.bytes_of(start + 1) for start in starts]
        assert len(copied) == 4  # the five short ones share a call
        assert sum(copied) + sum(held) <= sum(runner.bytes_of(start + 1) for start in starts)


def test_int8_is_a_quarter_of_the_bytes_and_nearly_the_same_logits(any_model, save, spec):
    parent = save(any_model)
    details = run_onnx(made := spec("onnx", parent, weights="int8"))["details"]
    assert details["size_ratio"] < 0.5  # tiny matrices: scales and the graph itself weigh
    assert details["mean_abs_error"] < 0.15 * details["logit_deviation"]
    stored = onnx.load(made.output_folder / "model.onnx").graph.initializer
    names = {tensor.name: tensor.data_type for tensor in stored}
    assert all(
        kind == onnx.TensorProto.UINT8 for name, kind in names.items() if name.endswith((".gate_up", ".down", "qkv.weight", "embedding.weight"))
    )


def test_an_int8_version_becomes_an_int8_graph(make_model, save, spec, tmp_path):
    run_int8(made := spec("int8", save(make_model())))
    result = run_onnx(spec("onnx", made.output_folder).model_copy(update={"output_folder": tmp_path / "grandchild"}))
    assert result["details"]["weights"] == "int8"
    assert result["kind"] == "onnx"


NODE_MODULES = Path(tempfile.gettempdir()) / "dsportal-onnxruntime-node"


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """onnxruntime-node, installed once on a machine. Its install script would fetch CUDA libraries."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("Node.js and npm are not installed")
    if not (NODE_MODULES / "node_modules" / "onnxruntime-node" / "package.json").exists():
        install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(NODE_MODULES), "onnxruntime-node@1.30.0"]
        try:
            subprocess.run(install, check=True, capture_output=True, timeout=60)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"npm cannot install onnxruntime-node here: {error}")
    return NODE_MODULES


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_it_answers_from_node_by_the_program_on_its_model_card(make_model, save, spec, tokenizer, prompts, node_modules, weights):
    run_onnx(made := spec("onnx", save(make_model()), weights=weights))
    (program,) = re.findall(r"```js\n(.*?)```", (made.output_folder / "README.md").read_text(), re.DOTALL)
    script = node_modules / f"answer-{os.getpid()}.mjs"
    script.write_text(program)
    ids = tokenizer.encode_prompt(prompts[0])
    command = ["node", str(script), str(made.output_folder / "model.onnx"), *map(str, ids)]
    try:
        said = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=60, env={**os.environ, "END": str(tokenizer.end_id), "MOST": "12"}
        )
    finally:
        script.unlink()
    with closing(open_engine(made.output_folder)) as engine:
        (ours,) = engine.generate_all([prompts[0]], max_tokens=12)
    assert tokenizer.decode(json.loads(said.stdout)).strip() == ours.text


def test_a_damaged_file_is_named(make_model, save, spec):
    run_onnx(made := spec("onnx", save(make_model())))
    (made.output_folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UnusableModel, match=r"model\.onnx of child"):
        open_runner(made.output_folder, threads=1, max_batch=1, max_seq_len=96)


class Sessions:
    """onnxruntime on a machine with a GPU, which runs the graph on the CPU; `spoilt` adds to the GPU's logits."""

    def __init__(self, monkeypatch, spoilt: float = 0.0):
        self.spoilt, self.real = spoilt, onnxruntime.InferenceSession
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
        monkeypatch.setattr(onnxruntime, "InferenceSession", self.open)

    def open(self, path, options, providers):
        session = self.real(path, options, providers=["CPUExecutionProvider"])
        if providers == ["CPUExecutionProvider"]:
            return session
        assert providers == [("CUDAExecutionProvider", {"device_id": 1}), "CPUExecutionProvider"]
        return SimpleNamespace(on_gpu=True, run=lambda names, inputs: [out + self.spoilt for out in session.run(names, inputs)])


@pytest.mark.parametrize(("spoilt", "where"), [(0.0, True), (3.0, False)])
def test_on_a_gpu_it_runs_there_if_it_says_the_same(make_model, save, spec, monkeypatch, caplog, spoilt, where):
    run_onnx(made := spec("onnx", save(make_model())))
    Sessions(monkeypatch, spoilt)
    with closing(open_runner(made.output_folder, threads=1, max_batch=1, max_seq_len=96, device="cuda:1")) as runner:
        assert hasattr(runner._session, "on_gpu") == where
    assert ("runs on the CPU" in caplog.text) != where


def test_without_cuda_in_onnxruntime_it_says_that_it_runs_on_the_cpu(make_model, save, spec, caplog):
    run_onnx(made := spec("onnx", save(make_model())))
    with closing(open_runner(made.output_folder, threads=1, max_batch=1, max_seq_len=96, device="cuda")) as runner:
        assert np.isfinite(runner.forward([Chunk(0, 0, [3, 4])])).all()
    assert "child runs on the CPU: onnxruntime is here without CUDA" in caplog.text
