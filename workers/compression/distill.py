"""Distillation: a small student learns what its teacher would say (Hinton et al. 2015), and the right answers beside it.

Loss: α · T² · KL(teacher ‖ student) of logits divided by the temperature T, plus (1 - α) · cross-entropy, over the answers' tokens.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.compression.folders import describe_result, load_parent, model_card
from workers.compression.learning import Length, Objective, learn, read_examples
from workers.compression.measure import compare, sample_prompts
from workers.compression.spec import CompressSpec
from workers.compression.students import student_config
from workers.compression.telling import tell
from workers.moe import Decoder, count_parameters, save_model
from workers.training import Batch, pack

TEMPERATURE = 2.0
ALPHA = 0.5
LR = 5e-3
DEFAULT_MINUTES = 2.0
HELD_BACK = 32  # examples on which the divergence is told before and after


def run_distill(spec: CompressSpec) -> dict[str, Any]:
    tell(0.0, "Loading the teacher")
    teacher, tokenizer = load_parent(spec.model_folder)
    config = student_config(teacher.config, spec.student)
    examples = read_examples(spec.dataset_folder, tokenizer, config.max_seq_len)
    student = Decoder(config)
    student.initialise(torch.Generator().manual_seed(spec.seed))
    probe = pack(examples[:HELD_BACK])
    before = divergence(teacher, student.eval(), probe)
    learnt = learn(
        student, examples, distillation(teacher, student), length=Length.of(spec, DEFAULT_MINUTES), lr=LR, seed=spec.seed, share=(0.02, 0.9),
        message="The student learns",
    )  # fmt: skip
    card = model_card(spec.model_folder, "Distilled", "A smaller model that learnt its teacher's answers.")
    save_model(spec.output_folder, student, tokenizer, card)
    tell(0.9, "Measuring speed against the teacher", eta_seconds=8.0)
    measured = compare(spec.model_folder, spec.output_folder, sample_prompts(spec.dataset_folder, tokenizer, spec.seed))
    parameters = count_parameters(config)[0] / count_parameters(teacher.config)[0]
    details = {
        **measured, "parameter_ratio": parameters, "temperature": TEMPERATURE, "alpha": ALPHA, "steps": learnt.steps, "seconds": learnt.seconds,
        "loss": learnt.figures, "divergence_before": before, "divergence_after": divergence(teacher, student, probe),
    }  # fmt: skip
    return describe_result("distilled", config, details)


def distillation(teacher: Decoder, student: Decoder, alpha: float = ALPHA) -> Objective:
    """The objective of `learn`."""

    def objective(batch: Batch) -> tuple[Tensor, dict[str, float]]:
        with torch.no_grad():
            wanted = _logits(teacher, batch)
        found = _logits(student, batch)
        kl = _divergence(wanted / TEMPERATURE, found / TEMPERATURE)
        hard = F.cross_entropy(found, batch.targets)
        loss = alpha * TEMPERATURE**2 * kl + (1 - alpha) * hard
        return loss, {"loss": float(loss.detach()), "kl": float(kl.detach()), "cross_entropy": float(hard.detach())}

    return objective


@torch.no_grad()
def divergence(teacher: Decoder, student: Decoder, batch: Batch) -> float:
    """Mean KL(teacher ‖ student) over the learnt tokens, at temperature 1, in nats."""
    return float(_divergence(_logits(teacher, batch), _logits(student, batch)))


def _logits(model: Decoder, batch: Batch) -> Tensor:
    """(learnt tokens, vocab)"""
    return model(batch.tokens, positions=batch.positions, mask=batch.mask, valid=batch.valid, select=batch.select)


def _divergence(wanted: Tensor, found: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(found, -1), F.log_softmax(wanted, -1), reduction="batchmean", log_target=True)
