from dataclasses import replace

import pytest
import torch

from workers.compression import distill, measure, policy, prune, pruning_curve, quality
from workers.compression.constraints import Constraints, Figures, pareto
from workers.compression.distill import shape_of
from workers.compression.policy import attempts, run_policy
from workers.compression.quantization import dequantize, is_quantized, quantize
from workers.compression.sensitivity import sensitivities
from workers.compression.spec import STUDENT_SPEED
from workers.compression.students import cost
from workers.moe import export_tensors, import_tensors, layout_named, load_model
from workers.protocol import JobError
from workers.training import encode, pack


def test_int8_is_chosen_where_it_keeps_the_quality(make_model, save, spec, dataset):
    result = run_policy(made := spec("policy", save(make_model()), dataset_folder=dataset, max_questions=6, max_bleu_loss=100.0))
    assert result["kind"] == "int8"
    assert [(row["step"], row["decision"]) for row in result["details"]["trail"]] == [("baseline", "measured"), ("INT8", "chosen")]
    load_model(made.output_folder)


def test_where_nothing_is_good_enough_the_trail_says_so_of_what_it_hands_on(make_model, save, spec, dataset):
    result = run_policy(spec("policy", save(make_model()), dataset_folder=dataset, max_questions=6, max_bleu_loss=100.0, max_bytes=1, steps=2))
    chosen = next(row for row in result["details"]["trail"] if row["decision"] == "chosen")
    assert "than the 1 allowed" in chosen["reason"]
    assert chosen["reasons"][-1].startswith("Nothing that was tried is good enough;")


def test_dearer_methods_are_tried_where_int8_is_too_large_and_each_leaves_its_figures(make_model, save, spec, dataset):
    parent = save(make_model(d_model=96, head_dim=24))
    limit = (parent / "model.safetensors").stat().st_size // 10
    result = run_policy(made := spec("policy", parent, dataset_folder=dataset, max_questions=6, max_bleu_loss=100.0, max_bytes=limit, steps=2))
    trail = result["details"]["trail"]
    assert [(row["step"], row["decision"]) for row in trail] == [
        ("baseline", "measured"), ("INT8", "refused"), ("mixed precision", "skipped"), ("pruning", "skipped"), ("pruning and INT8", "skipped"),
        ("distillation", "refused"), ("distillation and INT8", "chosen"),
    ]  # fmt: skip
    assert f"more than the {limit:,} allowed" in trail[1]["reason"]
    assert trail[3]["reason"].startswith("As small as pruning makes it, in INT8, it would not do: ")
    assert all(row["figures"]["bytes"] > 0 and row["figures"]["questions"] == 6 for row in trail if row["decision"] != "skipped")
    assert trail[-1]["figures"]["bytes"] <= limit
    # The lineage: the student lies in the work folder, a model of its own.
    (student,) = result["above"]
    assert student["kind"] == "distilled"
    model, _ = load_model(made.work_folder / student["folder"])
    assert sum(p.numel() for p in model.parameters()) == result["total_parameters"]


def test_where_only_quality_lacks_sensitive_matrices_stay_fp32(make_model, save, spec, dataset, monkeypatch):
    monkeypatch.setattr(policy, "attempts", lambda spec: [a for a in attempts(spec) if a.step in ("INT8", "mixed precision")])
    model = make_model()
    made = spec("policy", save(model), dataset_folder=dataset, max_questions=6, min_bleu_ratio=1.0)
    # An INT8 model that answers otherwise: the policy must not take it.
    monkeypatch.setattr(policy, "evaluate", _losing_points_in_int8(policy.evaluate))
    result = run_policy(made)
    assert [row["decision"] for row in result["details"]["trail"]] == ["measured", "refused", "chosen"]
    loaded, _ = load_model(made.output_folder)
    kept = {row["name"] for row in result["details"]["sensitivity"] if row["kept"]}
    exported, stored = (export_tensors(m.config, dict(m.state_dict())) for m in (model, loaded))
    for name, tensor in exported.items():
        assert torch.equal(stored[name], tensor) == (name in kept or not is_quantized(name)), name


def _losing_points_in_int8(evaluate):
    def measured(folder, rows, spec):
        lost = 5.0 if folder.name == "policy-int8" else 0.0
        found = evaluate(folder, rows, spec)
        return found | {"bleu": 50.0 - lost}

    return measured


def test_a_matrix_is_as_sensitive_as_answers_change_when_it_alone_is_rounded(make_model, tokenizer, pairs):
    model = make_model()
    exported = export_tensors(model.config, {name: tensor.clone() for name, tensor in model.state_dict().items()})
    name = "model.layers.1.self_attn.o_proj.weight"
    for other in [other for other in exported if is_quantized(other) and other != name]:
        exported[other] = dequantize(*quantize(exported[other]))  # rounding them again changes nothing
    model.load_state_dict(import_tensors(layout_named("gpt_oss"), model.config, exported))
    batch = pack(encode([{"question": q, "answer": a} for q, a in pairs[:8]], tokenizer, 96)[0])
    ranked = sensitivities(model, "gpt_oss", exported, batch)
    assert next(iter(ranked)) == name
    assert ranked.pop(name) > 100 * abs(max(ranked.values()))


def test_a_policy_that_was_cut_off_goes_on_after_what_it_finished(make_model, save, spec, dataset, monkeypatch):
    parent = save(make_model(d_model=96, head_dim=24))
    made = spec("policy", parent, dataset_folder=dataset, max_questions=4, max_bleu_loss=100.0, max_p99_ms=1e-9, steps=2)
    with monkeypatch.context() as cut:
        cut.setattr(policy, "attempts", lambda spec: _broken(attempts(spec), "distillation"))
        with pytest.raises(KeyboardInterrupt):
            run_policy(made)
    again = attempts(made)
    with monkeypatch.context() as resumed:
        resumed.setattr(policy, "attempts", lambda spec: [replace(a, make=_interrupted) if i < 4 else a for i, a in enumerate(again)])
        result = run_policy(made)
    assert [row["step"] for row in result["details"]["trail"]] == ["baseline", *(a.step for a in again)]
    assert sum(row["decision"] == "chosen" for row in result["details"]["trail"]) == 1


def _broken(found, step):
    return [replace(attempt, make=_interrupted) if attempt.step == step else attempt for attempt in found]


def _interrupted(spec):
    raise KeyboardInterrupt


def test_for_onnxruntime_the_chosen_model_is_a_graph(make_model, save, spec, dataset):
    result = run_policy(made := spec("policy", save(make_model()), dataset_folder=dataset, max_questions=4, max_bleu_loss=100.0, target="onnx"))
    assert result["kind"] == "onnx"
    assert (made.output_folder / "model.onnx").exists()


def _figures(**changes) -> Figures:
    return Figures(**{"bleu": 90.0, "bleu_low": 89.0, "bleu_high": 91.0, "questions": 9, "tokens_per_second": 1.0, "p50_ms": 2.0, "p99_ms": 4.0,
                      "bytes": 100, "speed_ratio": 1.0, **changes})  # fmt: skip


@pytest.mark.parametrize(("limits", "says"), [
    ({"bleu": 91.0}, "BLEU 90.0 is below the least of 91.0"), ({"bytes": 99}, "100 bytes are more than the 99 allowed"),
    ({"p99_ms": 3.0}, "a P99 of 4.0 ms is more than the 3 ms allowed"), ({"speed_ratio": 2.0}, "1.00 times the parent's speed is less than the 2 wanted"),
])  # fmt: skip
def test_each_constraint_says_what_falls_short(limits, says):
    assert Constraints(**{"bleu": 0.0, **limits}).shortfalls(_figures()) == [says]
    assert Constraints(bleu=0.0).shortfalls(_figures()) == []


def test_of_two_with_the_same_bytes_and_bleu_the_slower_is_not_on_the_front(tmp_path, make_model, save, spec):
    quick, slow = (
        policy.Variant(step, tmp_path / step, {"details": {}}, [], _figures(bytes=25, speed_ratio=ratio), 0.0)
        for step, ratio in (("q", 2.0), ("s", 1.5))
    )
    quick.folder.mkdir()
    made = policy._Policy(spec("policy", save(make_model())), [])
    made.variants = [quick, slow]
    trail = [policy._row(variant.step, "refused", variant.figures, [], _figures()) for variant in made.variants]
    told = made.hand_on(quick, trail, _figures())["details"]["trail"]
    assert [row["front"] for row in told] == [True, False]


def test_the_front_holds_what_no_other_beats():
    whole, small, worse, fast = _figures(), _figures(bytes=25), _figures(bytes=30, bleu=80.0), _figures(bytes=50, speed_ratio=3.0, bleu=85.0)
    assert pareto([whole, small, worse, fast]) == [small, fast]


def test_without_held_out_questions_there_is_no_policy(make_model, save, spec):
    with pytest.raises(JobError, match="was not trained here"):
        run_policy(spec("policy", save(make_model())))


def test_the_policy_measures_each_variant_once_and_draws_no_pruning_curve(make_model, save, spec, dataset, monkeypatch):
    asked = []

    def counted(folder, rows, spec):
        asked.append(folder.name)
        return quality.evaluate(folder, rows, spec)

    monkeypatch.setattr(policy, "evaluate", counted)
    for module in (prune, pruning_curve):
        monkeypatch.setattr(module, "evaluate", None)  # would fail if it were called
    compared = []
    monkeypatch.setattr(policy, "compare", lambda parent, child, prompts: compared.append(child.name) or measure.compare(parent, child, prompts))
    monkeypatch.setattr(policy, "attempts", lambda spec: [a for a in attempts(spec) if a.step in ("INT8", "pruning", "pruning and INT8")])
    result = run_policy(spec("policy", save(make_model()), dataset_folder=dataset, max_questions=4, max_bleu_loss=100.0, max_p99_ms=1e-9, steps=2))
    assert asked[1:] == ["policy-int8", "policy-pruning", "policy-pruning-and-int8"]
    assert compared == ["policy-pruning-and-int8"]  # the others were compared with their parent as they were made
    assert all(row["figures"]["speed_ratio"] > 0 for row in result["details"]["trail"])


def test_a_shape_that_is_too_slow_is_not_taught(make_model, save, spec, dataset, monkeypatch):
    for module in (prune, distill):
        monkeypatch.setattr(module, "learn", None)  # would fail if it were called
    result = run_policy(
        spec("policy", save(make_model()), dataset_folder=dataset, max_questions=4, max_bleu_loss=100.0, min_speed_ratio=1e9, steps=2)
    )
    trail = {row["step"]: row for row in result["details"]["trail"]}
    for step in ("pruning", "distillation"):
        assert trail[step]["decision"] == trail[f"{step} and INT8"]["decision"] == "skipped"
        assert trail[step]["reason"].startswith(f"As small as {step} makes it, in INT8, it would not do: ")
        assert "times the parent's speed is less than" in trail[step]["reason"]
    assert trail["INT8"]["decision"] == "chosen"


def test_a_teacher_that_is_too_small_for_a_student_ends_no_policy(make_model, save, spec, dataset):
    result = run_policy(spec("policy", save(make_model()), dataset_folder=dataset, max_questions=4, max_bleu_loss=100.0, max_bytes=1, steps=2))
    trail = {row["step"]: row for row in result["details"]["trail"]}
    assert trail["distillation"]["reason"].startswith("The teacher is too small")
    assert trail["INT8"]["decision"] == "chosen"


def test_within_a_policy_a_student_is_smaller_or_quicker_than_usual_where_the_limits_ask_for_that(make_model, save, spec):
    parent = save(make_model(d_model=192, head_dim=48, d_expert=128))
    whole = (parent / "model.safetensors").stat().st_size

    def student(**limits):
        made = spec("policy", parent, **limits)
        options = next(a for a in attempts(made) if a.step == "distillation").options
        return cost(shape_of(load_model(parent)[0].config, made.model_copy(update=dict(options))))

    usual = student()
    assert student(max_bytes=whole, min_speed_ratio=STUDENT_SPEED) == usual
    assert student(max_bytes=whole // 30)[0] < usual[0]
    assert student(min_speed_ratio=STUDENT_SPEED * 2)[1] < usual[1]


def test_the_trail_tells_the_speed_at_one_eight_and_32_answers_and_judges_by_eight(make_model, save, spec, dataset):
    result = run_policy(spec("policy", save(make_model()), dataset_folder=dataset, max_questions=4, max_bleu_loss=100.0))
    for row in result["details"]["trail"]:
        ratios = row["figures"]["speed_ratios"]
        assert list(ratios) == ["batch_1", "batch_8", "batch_32"]
        assert row["figures"]["speed_ratio"] == ratios["batch_8"]
