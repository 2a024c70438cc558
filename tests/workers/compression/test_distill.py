import pytest
import torch

from workers.compression.distill import distillation, divergence, run_distill
from workers.compression.learning import Length, learn
from workers.compression.students import MOST_PARAMETERS, student_config
from workers.moe import PRESETS, Decoder, count_parameters, load_model
from workers.protocol import JobError
from workers.training import encode, pack


def test_a_student_comes_to_speak_like_its_teacher(make_model, tokenizer, pairs):
    examples, _ = encode([{"question": q, "answer": a} for q, a in pairs], tokenizer, 96)
    teacher, length = make_model(), Length(40, None)
    told = distillation(teacher, teacher, alpha=0.0)  # the right answers only
    learn(teacher, examples, told, length=length, lr=5e-3, seed=0, share=(0.0, 1.0), message="learns")
    student = Decoder(teacher.config.with_(n_layers=1, n_experts=2))
    student.initialise(torch.Generator().manual_seed(1))
    probe = pack(examples)
    before = divergence(teacher, student.eval(), probe)
    learn(student, examples, distillation(teacher, student), length=length, lr=5e-3, seed=0, share=(0.0, 1.0), message="learns")
    assert divergence(teacher, student, probe) < 0.5 * before


def test_the_divergence_is_that_of_the_probabilities(make_model, tokenizer, pairs):
    teacher, student = make_model(0), make_model(1)
    batch = pack(encode([{"question": q, "answer": a} for q, a in pairs[:3]], tokenizer, 96)[0])
    with torch.no_grad():
        p, q = (
            m(batch.tokens, positions=batch.positions, mask=batch.mask, valid=batch.valid, select=batch.select).softmax(-1)
            for m in (teacher, student)
        )
    assert divergence(teacher, student, batch) == pytest.approx(float((p * (p.log() - q.log())).sum(-1).mean()), rel=1e-4)
    assert divergence(teacher, teacher, batch) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("preset", ["nano", "small", "base", "moe-16b-a3b"])
def test_a_derived_student_has_at_most_a_fifth_of_the_parameters(preset):
    teacher = PRESETS[preset]
    assert 0.03 < count_parameters(student_config(teacher, None))[0] / count_parameters(teacher)[0] <= MOST_PARAMETERS


def test_a_distilled_model_is_a_model_like_any_other(make_model, save, spec, dataset):
    result = run_distill(made := spec("distill", save(make_model(d_model=96, head_dim=24)), steps=2, dataset_folder=dataset))
    model, _ = load_model(made.output_folder)
    assert result["kind"] == "distilled"
    assert sum(p.numel() for p in model.parameters()) == result["total_parameters"]
    assert result["details"]["parameter_ratio"] <= MOST_PARAMETERS


@pytest.mark.parametrize(
    ("options", "says"),
    [({"student": "huge"}, "no preset 'huge'"), ({"student": "nano"}, "would not be smaller than its teacher"), ({}, "no text to learn from")],
)
def test_what_cannot_be_distilled_is_refused_with_the_reason(make_model, save, spec, options, says):
    with pytest.raises(JobError, match=says):
        run_distill(spec("distill", save(make_model(d_model=96, head_dim=24)), steps=1, **options))


def test_a_dataset_without_a_training_file_is_refused(make_model, save, spec, dataset):
    (dataset / "train.jsonl").unlink()
    with pytest.raises(JobError, match=r"no train\.jsonl"):
        run_distill(spec("distill", save(make_model(d_model=96, head_dim=24)), steps=1, dataset_folder=dataset))
