"""Distillation: a small student learns what its teacher would say (Hinton et al. 2015), and the right answers beside it.

Loss: α · T² · KL(teacher ‖ student), of logits divided by the temperature T, plus (1 - α) · cross-entropy, over the answers' tokens, each answer as
a whole counting as much as any other: a verdict on a claim is a few tokens, and would be drowned by the long answers beside it. The answers are the
dataset's and, at sequence level (Kim & Rush 2016), those that the teacher itself gives to questions which the dataset does not ask
(`workers.compression.questions`).

T is 1 unless another is asked for: at 2 the flat tail of the teacher drowned verdicts too.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.compression.folders import describe_result, load_parent, model_card
from workers.compression.goal import Goal
from workers.compression.learning import Length, Objective, Rates, learn, read_examples
from workers.compression.measure import compare, sample_prompts
from workers.compression.questions import taught_by
from workers.compression.spec import CompressSpec
from workers.compression.students import new_student, student_config
from workers.compression.teacher import Teacher
from workers.compression.telling import tell
from workers.moe import Decoder, ModelConfig, count_parameters, save_model
from workers.training import MOST_TURNS, Batch, pack

ALPHA = 0.5
RATES = Rates(lr=5e-3, matrix_lr=0.02)
DEFAULT_MINUTES = 4.0
HELD_BACK = 32  # examples on which the divergence is told before and after


def run_distill(spec: CompressSpec) -> dict[str, Any]:
    tell(0.0, "Loading the teacher")
    teacher, tokenizer = load_parent(spec.model_folder)
    config = shape_of(teacher.config, spec)
    examples = read_examples(spec.dataset_folder, tokenizer, config)
    probe = pack(examples[:HELD_BACK])
    tell(0.01, "The teacher answers questions that the dataset does not ask", eta_seconds=20.0)
    taught = taught_by(spec, tokenizer, config.max_seq_len)
    student = new_student(teacher, config, examples, spec.seed)
    before = divergence(teacher, student.eval(), probe)
    every = [*examples, *taught]
    learnt = learn(
        student, every, distillation(Teacher(teacher, every, spec.temperature), student), length=Length.of(spec, DEFAULT_MINUTES), rates=RATES, seed=spec.seed,
        share=(0.05, 0.9), message="The student learns", work_folder=spec.work_folder, goal=Goal.of(spec, tokenizer),
    )  # fmt: skip
    card = model_card(spec.model_folder, "Distilled", "A smaller model that learnt its teacher's answers.")
    save_model(spec.output_folder, student, tokenizer, card)
    tell(0.9, "Measuring speed against the teacher", eta_seconds=8.0)
    measured = compare(spec.model_folder, spec.output_folder, sample_prompts(spec.dataset_folder, tokenizer, spec.seed))
    parameters = count_parameters(config)[0] / count_parameters(teacher.config)[0]
    details = {
        **measured, "parameter_ratio": parameters, "temperature": spec.temperature, "alpha": ALPHA, "steps": learnt.steps, "seconds": learnt.seconds,
        "questions_answered_by_teacher": len(taught), "loss": learnt.figures, "curve": learnt.curve, "trials": learnt.trials, "divergence_before": before,
        "divergence_after": divergence(teacher, student, probe), "turns": MOST_TURNS,
    }  # fmt: skip
    return describe_result("distilled", config, details)


def shape_of(teacher: ModelConfig, spec: CompressSpec) -> ModelConfig:
    return student_config(teacher, spec.student, parameters=spec.student_parameters, speed=spec.student_speed)


def save_untaught(spec: CompressSpec) -> None:
    """The student before it has learnt anything, whose bytes and speed are those that it will have."""
    teacher, tokenizer = load_parent(spec.model_folder)
    student = Decoder(shape_of(teacher.config, spec))
    student.initialise(torch.Generator().manual_seed(spec.seed))
    save_model(spec.output_folder, student.eval(), tokenizer, "")


def distillation(teacher: Teacher, student: Decoder, alpha: float = ALPHA) -> Objective:
    """The objective of `learn`."""

    def objective(batch: Batch, chosen: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        count = batch.learnt_count  # padding lies at the end
        logits = _logits(student, batch)[:count]
        log_q = F.log_softmax(logits, -1)
        share, t = _shares(batch), teacher.temperature
        soft = log_q if t == 1 else F.log_softmax(logits / t, -1)
        kl = t**2 * (share * teacher.wanted(batch, chosen).divergence(soft)).sum()  # T²: its gradient stays as large as the other's
        hard = (share * F.nll_loss(log_q, batch.targets[:count], reduction="none")).sum()
        loss = alpha * kl + (1 - alpha) * hard
        return loss, {"loss": float(loss.detach()), "kl": float(kl.detach()), "cross_entropy": float(hard.detach())}

    return objective


def _shares(batch: Batch) -> Tensor:
    """What each learnt token counts: every example as much as any other. (learnt,), summing to 1."""
    owners = batch.owners
    share = owners.bincount()[owners].float().reciprocal()
    return share / share.sum()


@torch.no_grad()
def divergence(teacher: Decoder, student: Decoder, batch: Batch) -> float:
    """Mean KL(teacher ‖ student) over the learnt tokens, at temperature 1, in nats."""
    count = batch.learnt_count
    return float(_divergence(_logits(teacher, batch)[:count], _logits(student, batch)[:count]))


def _logits(model: Decoder, batch: Batch) -> Tensor:
    """(learnt tokens, vocab)"""
    return model(batch.tokens, **batch.inputs).float()


def _divergence(wanted: Tensor, found: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(found, -1), F.log_softmax(wanted, -1), reduction="batchmean", log_target=True)
