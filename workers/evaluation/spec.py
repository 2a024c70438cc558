"""The spec of an evaluation (docs/architecture.md)."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class EvaluateSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    version: Literal[1]
    model_folder: Path
    eval_file: Path
    output_folder: Path
    max_questions: int | None = Field(default=None, ge=1, description="at most so many questions, and so many claims")
    max_tokens: int = Field(default=64, ge=1)
    threads: int = Field(default=1, ge=1)
    seed: int = 0
