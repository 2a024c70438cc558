import json
import subprocess
import sys

import pytest
import torch

from workers.compression import applicable
from workers.compression.applicable import Model, unusable
from workers.compression.folders import load_parent
from workers.compression.structure import without_experts, without_units
from workers.compression.student_shapes import fewest_parameters, shapes_of, too_small
from workers.compression.students import student_config
from workers.moe import ModelConfig, count_parameters
from workers.protocol import JobError


def _run(tmp_path, **spec) -> tuple[int, list[dict]]:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({"version": 1, "output_folder": str(tmp_path / "child"), "work_folder": str(tmp_path), **spec}))
    done = subprocess.run(
        [sys.executable, "-m", "workers.compression", str(path)], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_a_job_tells_its_progress_and_ends_with_its_result(tmp_path, make_model, save):
    code, events = _run(tmp_path, method="prune", sparsity=0.5, model_folder=str(save(make_model())))
    assert code == 0
    progress = [e["progress"] for e in events if e["event"] == "progress"]
    assert progress == sorted(progress)
    assert events[-1]["result"]["kind"] == "pruned"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "prune", "threshold": -0.1}, "threshold: Input should be greater than 0"),
        ({"method": "prune", "sparsity": 1.0}, "sparsity: Input should be less than 1"),
        ({"method": "prune", "sparsity": 0.5, "threshold": 0.1}, "not both"),
        ({"method": "prune", "sparsity": 0.9, "structure": "2:4"}, "zeroes two of every four"),
        ({"method": "shrink"}, "method: Input should be"),
        ({"method": "int8"}, "is not a model folder"),
    ],
)
def test_bad_options_end_with_a_message_for_people(tmp_path, options, says):
    code, events = _run(tmp_path, model_folder=str(tmp_path / "nothing"), **options)
    assert code == 1
    assert events[-1]["event"] == "error"
    assert says in events[-1]["message"]


@pytest.mark.parametrize("method", ["int8", "prune", "distill", "onnx", "policy"])
@pytest.mark.parametrize("kind", ["moe", "dense", "distilled"])
def test_every_method_applies_to_a_full_model(kind, method):
    assert applicable(kind, method) is None


@pytest.mark.parametrize(("kind", "method", "applies"), [
    ("pruned", "int8", True), ("pruned", "onnx", True), ("pruned", "prune", False), ("int8", "int8", False), ("int8", "onnx", True), ("onnx", "distill", False),
])  # fmt: skip
def test_a_compressed_model_takes_what_still_makes_sense(kind, method, applies):
    assert (applicable(kind, method) is None) == applies


LATENT = {
    "vocab_size": 300, "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "head_dim": 12, "d_expert": 16, "n_experts": 4, "top_k": 2,
    "router": "sigmoid", "kv_rank": 16, "rope_head_dim": 4, "value_head_dim": 8,
}  # fmt: skip


@pytest.mark.parametrize(("method", "applies"), [("int8", True), ("onnx", False), ("policy", True), ("prune", True), ("distill", True)])
def test_what_the_onnx_graph_does_not_express_is_refused_by_name(method, applies):
    why = applicable("moe", method, LATENT)
    assert (why is None) == applies
    assert why is None or "kv_rank" in why


def test_a_policy_for_onnxruntime_is_refused_where_no_graph_can_be_written():
    model = Model(LATENT, 1000, has_text=True, has_questions=True)
    assert unusable(model, "policy", {}, {}) is None
    refusal = unusable(model, "policy", {"target": "onnx"}, {})
    assert refusal is not None
    assert (refusal.field, "kv_rank" in refusal.reason) == ("target", True)


def test_neurons_of_which_that_share_is_not_one_are_refused():
    known = Model({**LATENT, "d_expert": 40}, 1000, has_text=True, has_questions=True)
    refusal = unusable(known, "prune", {"structure": "neuron", "sparsity": 0.01}, {})
    assert refusal is not None
    assert (refusal.field, "not one of 40 hidden units" in refusal.reason) == ("sparsity", True)
    assert unusable(known, "prune", {"structure": "neuron", "sparsity": 0.02}, {}) is None


@pytest.mark.parametrize("peculiar", [{"expert_bias": True}, {"swiglu_limit": 7.0}])
def test_use_that_is_not_counted_is_refused_at_its_field(peculiar):
    known = Model({**LATENT, **peculiar}, 1000, has_text=True, has_questions=True)
    refusal = unusable(known, "prune", {"structure": "neuron", "sparsity": 0.5, "importance": "use"}, {})
    assert refusal is not None
    assert refusal.field == "importance"
    assert unusable(known, "prune", {"structure": "neuron", "sparsity": 0.5}, {}) is None


@pytest.mark.parametrize("changes", [
    {}, {"n_experts": 0, "top_k": 0, "d_expert": 0, "d_dense": 56}, {"router": "sigmoid", "n_shared_experts": 1, "first_dense_layers": 1, "d_dense": 56},
], ids=["softmax", "dense", "sigmoid"])  # fmt: skip
def test_a_teacher_is_too_small_for_a_student_before_the_job_as_within_it(make_model, changes):
    """What is told without torch is what torch counts."""
    config = make_model(**changes).config
    smallest = fewest_parameters(config)
    assert smallest == min(count_parameters(shape)[0] for shape in set(shapes_of(config)))
    for parameters, refused in ((5 * smallest, False), (5 * smallest - 5, True)):
        known = Model(config.as_dict(), parameters, has_text=True, has_questions=True)
        refusal = unusable(known, "distill", {}, {})
        assert (refusal is not None) == refused
        assert refusal is None or "too small to have a student" in refusal.reason
    assert unusable(Model(config.as_dict(), 10, has_text=True, has_questions=True), "distill", {"student": "nano"}, {"nano": 9}) is None


@pytest.mark.parametrize(("share", "told"), [(0.2, "of 20 % of its"), (0.0006, "of 0.06 % of its")])
def test_a_share_that_no_student_has_is_not_told_as_none(share, told):
    assert told in too_small(share, 100)


def test_a_peculiar_model_is_refused_by_onnx_and_can_be_pruned_and_distilled(make_model, save):
    model = make_model(attention_sinks=True, expert_bias=True, swiglu_offset=1.0, swiglu_alpha=1.7, swiglu_limit=7.0)
    folder = save(model)
    with pytest.raises(JobError, match="attention_sinks"):
        load_parent(folder, "onnx")
    parent, _ = load_parent(folder, "prune")
    narrow, few = without_units(parent, 0.5), without_experts(parent, 0.5)
    assert (narrow.config.d_expert, few.config.n_experts) == (model.config.d_expert // 2, model.config.n_experts // 2)
    for smaller in (narrow, few):
        assert smaller(torch.arange(20)[None]).isfinite().all()
    big = ModelConfig.from_dict({**model.config.as_dict(), "n_layers": 8, "n_experts": 32, "d_model": 256})
    assert student_config(big, None).special_features == ()


def test_asking_what_applies_and_serving_int8_need_no_torch(tmp_path, make_model, save, spec):
    from workers.compression.int8 import run_int8

    run_int8(made := spec("int8", save(make_model())))
    code = f"""
import sys
from pathlib import Path
from workers.compression import applicable, open_runner
open_runner(Path({str(made.output_folder)!r}), threads=1, max_batch=1, max_seq_len=96).close()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
