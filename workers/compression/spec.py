"""What one compression job is, as the JSON file that the child process reads."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Structure = Literal["unstructured", "layer", "neuron", "expert", "2:4"]
NARROWING = ("neuron", "expert")  # the structures whose result is a smaller model, not one with zeros


STUDENT_PARAMETERS, STUDENT_SPEED = 0.2, 3.0  # a derived student's: most of its teacher's parameters, and how many times its speed


class CompressSpec(BaseModel):
    """`output_folder` appears when the job is done; `work_folder` keeps what it can resume from. `dataset_folder`: the processed dataset
    that the model was trained on; None for an imported model, which can then be neither distilled nor given to the policy."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    version: Literal[1] = 1
    method: Literal["int8", "prune", "distill", "onnx", "policy"]
    model_folder: Path
    output_folder: Path
    work_folder: Path
    dataset_folder: Path | None = None
    threads: int = Field(1, ge=1)
    seed: int = Field(0, ge=0)

    # prune: one of threshold (weights smaller than it become zero) and sparsity (share of the weights that become zero)
    threshold: float | None = Field(None, gt=0)
    sparsity: float | None = Field(None, gt=0, lt=1)
    structure: Structure = "unstructured"
    importance: Literal["magnitude", "use"] = "magnitude"  # of neurons and experts: their weights, or what the dataset's tokens make of them

    # distill: the student's preset, else a shape derived from the teacher's, with this share of its parameters and so many times its speed;
    # how long it learns
    student: str | None = None
    student_parameters: float = Field(STUDENT_PARAMETERS, gt=0)
    student_speed: float = Field(STUDENT_SPEED, gt=0)
    steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)  # the policy's: of all of it
    temperature: float = Field(1.0, gt=0, le=100)  # by which teacher's and student's logits are divided before they are compared
    until_good: bool = False  # distill, prune: learn no longer than until held-out questions are answered as well as by the parent

    # onnx
    weights: Literal["fp32", "int8"] = "fp32"

    # policy
    max_bleu_loss: float = Field(1.0, ge=0)  # BLEU points below the parent
    min_bleu_ratio: float | None = Field(None, gt=0, le=1)  # of the parent's BLEU, in place of max_bleu_loss
    max_bytes: int | None = Field(None, ge=1)  # of the weights file
    max_p99_ms: float | None = Field(None, gt=0)  # of one answer on one core
    min_speed_ratio: float | None = Field(None, gt=0)  # tokens a second of decoding next to the parent's, eight answers at a time
    target: Literal["cpu", "onnx"] = "cpu"  # what is to run it: this portal's engine, or onnxruntime on any device
    max_questions: int = Field(400, ge=1)  # asked of each variant; of 200, one that is answered otherwise is half a point of BLEU

    @model_validator(mode="after")
    def _consistent(self) -> "CompressSpec":
        if self.threshold is not None and self.sparsity is not None:
            raise ValueError("give a threshold or a sparsity, not both")
        if self.steps is not None and self.minutes is not None:
            raise ValueError("give steps or minutes, not both")
        if self.min_bleu_ratio is not None and "max_bleu_loss" in self.model_fields_set:
            raise ValueError("give max_bleu_loss or min_bleu_ratio, not both")
        if self.importance == "use" and self.structure not in NARROWING:
            raise ValueError("importance by use is for whole neurons and experts; single weights go by their magnitude")
        if self.structure == "expert" and self.threshold is not None:
            raise ValueError("experts are removed by their share: give a sparsity, not a threshold")
        if self.structure == "2:4" and (self.threshold is not None or self.sparsity not in (None, 0.5)):
            raise ValueError("2:4 pruning zeroes two of every four weights: it takes neither a threshold nor another sparsity than 0.5")
        return self
