import json
from typing import ClassVar

import numpy as np
import pytest
import torch

from workers.compression import learning
from workers.compression import questions as questions_module
from workers.compression.distill import distillation, divergence, run_distill
from workers.compression.goal import Goal
from workers.compression.learning import Length, Rates, learn
from workers.compression.quality import held_out
from workers.compression.questions import mentioned, rephrased
from workers.compression.spec import STUDENT_PARAMETERS, STUDENT_SPEED
from workers.compression.students import cost, new_student, student_config
from workers.compression.teacher import LIKELIEST, Teacher
from workers.evaluation.questions import HeldOut
from workers.moe import PRESETS, Decoder, count_parameters, load_model
from workers.protocol import JobError
from workers.training import as_conversations, encode, pack

RATES = Rates(lr=5e-3, matrix_lr=0.02)


def test_a_student_comes_to_speak_like_its_teacher(make_model, tokenizer, pairs):
    examples, _ = encode([{"question": q, "answer": a} for q, a in pairs], tokenizer, 96)
    teacher, length = make_model(), Length(25, None)
    told = distillation(Teacher(teacher, examples), teacher, alpha=0.0)  # the right answers only
    learn(teacher, examples, told, length=length, rates=RATES, seed=0, share=(0.0, 1.0), message="learns")
    student = Decoder(teacher.config.with_(n_layers=1, n_experts=2))
    student.initialise(torch.Generator().manual_seed(1))
    probe = pack(examples)
    before = divergence(teacher, student.eval(), probe)
    learn(
        student, examples, distillation(Teacher(teacher, examples), student), length=length, rates=RATES, seed=0, share=(0.0, 1.0), message="learns"
    )
    assert divergence(teacher, student, probe) < 0.5 * before


def test_the_divergence_is_that_of_the_probabilities(make_model, tokenizer, pairs):
    teacher, student = make_model(0), make_model(1)
    batch = pack(encode([{"question": q, "answer": a} for q, a in pairs[:3]], tokenizer, 96)[0])
    with torch.no_grad():
        p, q = (
            m(batch.tokens, positions=batch.positions, mask=batch.mask, valid=batch.valid, select=batch.select)[: batch.learnt_count].softmax(-1)
            for m in (teacher, student)
        )
    assert divergence(teacher, student, batch) == pytest.approx(float((p * (p.log() - q.log())).sum(-1).mean()), rel=1e-4)
    assert divergence(teacher, teacher, batch) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("preset", ["nano", "small", "base", "moe-16b-a3b"])
def test_a_derived_student_has_at_most_a_fifth_of_the_parameters(preset):
    teacher = PRESETS[preset]
    assert 0.1 < count_parameters(student_config(teacher, None))[0] / count_parameters(teacher)[0] <= STUDENT_PARAMETERS


@pytest.mark.parametrize("preset", ["nano", "small", "base", "moe-16b-a3b"])
def test_a_derived_student_has_at_most_a_third_of_the_work_for_a_token(preset):
    teacher = PRESETS[preset]
    assert cost(student_config(teacher, None))[1] < cost(teacher)[1] / STUDENT_SPEED


def test_the_less_speed_and_the_more_parameters_are_wanted_the_larger_is_the_student():
    small, quick, large = (student_config(PRESETS["small"], None, parameters=share, speed=speed) for share, speed in ((0.1, 2), (0.3, 6), (0.3, 2)))
    assert max(cost(small)[0], cost(quick)[0]) < cost(large)[0]
    assert cost(quick)[1] < cost(large)[1]


def test_where_no_student_is_as_quick_as_wanted_it_is_the_quickest():
    quickest, quick = (student_config(PRESETS["nano"], None, speed=speed) for speed in (1000, 3))
    assert cost(quickest)[1] < cost(quick)[1]


@pytest.mark.parametrize("changes", [
    {}, {"n_experts": 0, "top_k": 0, "d_expert": 0, "d_dense": 512}, {"router": "sigmoid", "n_shared_experts": 1, "first_dense_layers": 1, "d_dense": 512},
    {"image_size": 32}, {"n_heads": 12, "n_kv_heads": 4, "head_dim": 64}, {"tie_embeddings": False},
])  # fmt: skip
def test_a_teacher_of_any_kind_has_a_student_whose_heads_are_shared_as_its_own(changes):
    teacher = PRESETS["small"].with_(**changes)
    student = student_config(teacher, None)
    assert student.n_heads * teacher.n_kv_heads == teacher.n_heads * student.n_kv_heads
    assert student.n_kv_heads <= teacher.n_kv_heads
    assert count_parameters(student)[0] <= STUDENT_PARAMETERS * count_parameters(teacher)[0]


def test_a_distilled_model_is_a_model_like_any_other(make_model, save, spec, dataset):
    result = run_distill(made := spec("distill", save(make_model(d_model=96, head_dim=24)), steps=2, dataset_folder=dataset))
    model, _ = load_model(made.output_folder)
    assert result["kind"] == "distilled"
    assert sum(p.numel() for p in model.parameters()) == result["total_parameters"]
    assert result["details"]["parameter_ratio"] <= STUDENT_PARAMETERS


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


THINGS = ("a hammer", "a chisel", "the Moon", "a plane", "a saw", "a rasp")


def test_a_thing_is_asked_about_in_the_phrasings_that_others_are_asked_in():
    def asked(number: int, *phrasings: str) -> list[dict]:
        return [{"question": phrasing.format(THINGS[number]), "answer": "…", "source": str(number), "lang": "en"} for phrasing in phrasings]

    everything = "What is {}?", "Describe {}.", "Tell me about {}."
    records = [row for number in range(5) for row in asked(number, *everything)] + asked(5, *everything[:2])
    assert [row["question"] for row in rephrased(records)] == ["Tell me about a rasp."]


@pytest.mark.parametrize(("questions", "mention"), [
    (["What is a clock?", "Tell me about a clock.", "what is a clock"], "a clock"), (["什么是民主？", "民主是什么？", "请解释民主。"], "民主"),
    (["What is rain?", "Describe training."], ""),
])  # fmt: skip
def test_what_questions_speak_of_is_what_they_share_in_whole_words(questions, mention):
    assert mentioned(questions) == mention


def test_what_the_evaluation_asks_is_not_taught(tmp_path):
    folder = tmp_path / "asked"
    folder.mkdir()
    phrasings = "What is {}?", "Tell me about {}.", "Describe {}."
    rows = [
        {"kind": "question", "question": phrasing.format(f"a thing{i}x"), "answer": "It is.", "source": str(i)}
        for i in range(8)
        for phrasing in phrasings[: 3 if i < 6 else 2]
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "eval.jsonl").write_text(json.dumps({"kind": "question", "question": "Describe a thing6x.", "answer": "It is."}) + "\n")
    assert [row["question"] for row in questions_module._asked(folder, 0)] == ["Describe a thing7x."]


def test_a_student_that_was_cut_off_ends_as_if_it_had_not_been(make_model, tokenizer, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("workers.training.state.LARGEST_SHARE", 1e9)
    examples, _ = encode([{"question": q, "answer": a} for q, a in pairs], tokenizer, 96)

    def train(folder, cut_after: int | None = None):
        student, teacher = make_model(1), make_model(0)
        steps = []

        def after_step():
            steps.append(1)
            if len(steps) == cut_after:
                raise KeyboardInterrupt

        learn(
            student, examples, distillation(Teacher(teacher, examples), student), length=Length(6, None), rates=RATES, seed=0, share=(0.0, 1.0), message="learns",
            work_folder=folder, after_step=after_step,
        )  # fmt: skip
        return student.state_dict(), len(steps)

    whole, _ = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", cut_after=4)
    resumed, steps = train(tmp_path / "cut")
    assert steps == 3
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_teacher_is_asked_once_about_each_example(make_model, tokenizer, pairs, monkeypatch):
    examples, _ = encode([{"question": q, "answer": a} for q, a in pairs], tokenizer, 96)
    asked = []
    remembered = Teacher(make_model(), examples)
    monkeypatch.setattr(remembered, "_ask", lambda numbers, ask=remembered._ask: asked.extend(numbers) or ask(numbers))
    for chosen in ([5, 2], [2, 7, 5]):
        remembered.wanted(pack([examples[i] for i in chosen]), chosen)
    assert sorted(asked) == [2, 5, 7]


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["alone", "in a conversation"])
def test_what_the_teacher_says_stands_at_the_tokens_that_it_says_it_of(make_model, tokenizer, pairs, share):
    examples, _ = encode([{"question": q, "answer": a * times} for times, (q, a) in enumerate(pairs[:6], 1)], tokenizer, 96)
    teacher, chosen = make_model(), [5, 2, 0, 2]
    batch = pack(as_conversations([examples[i] for i in chosen], share, np.random.default_rng(0), 96))
    found = Teacher(teacher, examples).wanted(batch, chosen)
    said = {}  # the likeliest tokens' logarithms, of each example alone
    for number in set(chosen):
        alone = pack([examples[number]])
        with torch.no_grad():
            said[number] = teacher(alone.tokens, **alone.inputs)[: alone.learnt_count].log_softmax(-1).max(-1).values
    owner = batch.example.view(-1)[batch.select[: batch.learnt_count]]
    turns = [[number] for number in chosen] if not share else [chosen[:3], chosen[3:]]
    for place, numbers in enumerate(turns):
        wanted = torch.cat([said[number] for number in numbers])
        torch.testing.assert_close(found.log_p[owner == place, 0], wanted, rtol=1e-4, atol=1e-4)


def test_the_remembered_divergence_is_the_whole_one_where_the_teacher_is_sure(make_model, tokenizer, pairs):
    examples, _ = encode([{"question": q, "answer": a} for q, a in pairs[:4]], tokenizer, 96)
    teacher, student = make_model(0), make_model(1)
    with torch.no_grad():
        teacher.norm.weight.mul_(20)  # nearly all of its probability on a few tokens
        batch = pack(examples)
        log_p, log_q = (m(batch.tokens, **batch.inputs)[: batch.learnt_count].log_softmax(-1) for m in (teacher, student))
        found = Teacher(teacher, examples).wanted(batch, range(4)).divergence(log_q)
    torch.testing.assert_close(found, (log_p.exp() * (log_p - log_q)).sum(-1), rtol=1e-3, atol=1e-3)


def test_a_temperature_softens_teacher_and_student_and_keeps_the_gradients_size(make_model, tokenizer, pairs):
    """T² · KL of logits divided by T, over the likeliest tokens and all others as one."""
    examples, _ = encode([{"question": q, "answer": a} for q, a in pairs[:1]], tokenizer, 96)
    teacher, student, t = make_model(0), make_model(1), 3.0
    batch = pack(examples)
    with torch.no_grad():
        loss, told = distillation(Teacher(teacher, examples, t), student, alpha=1.0)(batch, [0])
        p, q = ((m(batch.tokens, **batch.inputs)[: batch.learnt_count] / t).softmax(-1) for m in (teacher, student))
    likeliest = p.topk(LIKELIEST, dim=-1).indices
    p, q = (torch.cat([share.gather(1, likeliest), 1 - share.gather(1, likeliest).sum(1, keepdim=True)], 1) for share in (p, q))
    assert told["kl"] == pytest.approx(t**2 * float((p * (p / q).log()).sum(1).mean()), rel=1e-3)
    assert float(loss) == pytest.approx(told["kl"])


def test_a_short_answer_counts_as_much_as_a_long_one(make_model, tokenizer):
    long = {"question": "What is it?", "answer": "Thing number 1 is red. Thing number 2 is blue. Thing number 3 is green."}
    short = {"question": "Is it?", "answer": "No."}
    examples, _ = encode([long, short], tokenizer, 96)
    model = make_model()
    objective = distillation(Teacher(model, examples), model, alpha=0.0)
    with torch.no_grad():
        each = [float(objective(pack([examples[i]]), [i])[0]) for i in (0, 1)]
        both = float(objective(pack(examples), [0, 1])[0])
    assert both == pytest.approx(sum(each) / 2, rel=1e-3)


def test_a_student_begins_nearer_to_its_teacher_than_by_chance(make_model, tokenizer, pairs):
    examples, _ = encode([{"question": q, "answer": a} for q, a in pairs], tokenizer, 96)
    teacher = make_model(d_model=96, head_dim=24)
    same = new_student(teacher, teacher.config, examples, seed=1)
    torch.testing.assert_close(divergence(teacher, same.eval(), pack(examples)), 0.0, atol=0.02, rtol=0.0)


def test_a_student_of_another_kind_keeps_what_it_was_initialised_with_where_nothing_fits(make_model, tokenizer, pairs):
    examples, _ = encode([{"question": q, "answer": a} for q, a in pairs], tokenizer, 96)
    teacher = make_model(n_experts=0, top_k=0, d_expert=0, d_dense=56)
    student = new_student(teacher, teacher.config.with_(n_experts=4, top_k=2, d_expert=24, d_dense=0, d_model=24, head_dim=6), examples, seed=1)
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    assert not student.embedding.weight.equal(teacher.embedding.weight[:, :24])


def test_learning_ends_when_it_has_learnt_enough(make_model, tokenizer, pairs):
    examples, _ = encode([{"question": q, "answer": a} for q, a in pairs], tokenizer, 96)

    class Rising:
        least = 30.0
        asked: ClassVar[list[float]] = []

        def bleu(self, model):
            self.asked.append(10.0 * (len(self.asked) + 1))
            return self.asked[-1]

    model = make_model()
    objective = distillation(Teacher(make_model(), examples), model)
    learnt = learn(model, examples, objective, length=Length(24, None), rates=RATES, seed=0, share=(0.0, 1.0), message="learns", goal=Rising())
    assert [bleu for _, _, bleu in learnt.trials] == [10.0, 20.0, 30.0]
    assert learnt.steps == 6  # of 24, tried twelve times


def test_what_a_run_is_ended_by_is_not_what_its_result_is_judged_by(tmp_path, make_model, save, spec, dataset, tokenizer):
    rows = [{"kind": "question", "question": f"What is {i}?", "answer": "A number."} for i in range(60)]
    (dataset / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = spec("distill", save(make_model()), dataset_folder=dataset, max_questions=30, until_good=True)
    goal = Goal.of(made, tokenizer)
    judged = {row.question for row in held_out(made)}
    assert len(goal.rows) == 30
    assert not judged & {row.question for row in goal.rows}
    assert Goal.of(made.model_copy(update={"max_questions": 50}), tokenizer) is None  # ten are too few to go by
    assert Goal.of(made.model_copy(update={"until_good": False}), tokenizer) is None


def test_enough_is_what_the_parent_answers(make_model, save, spec, dataset, tokenizer, pairs):
    rows = [HeldOut("question", question, answer, "en", None) for question, answer in pairs[:4]]
    goal = Goal(spec("distill", save(make_model()), dataset_folder=dataset), tokenizer, rows)
    assert goal.bleu(make_model()) == pytest.approx(goal.least)
