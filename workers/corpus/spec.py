"""The spec of a processing run (docs/architecture.md)."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ProcessSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    inputs: list[Path] = Field(min_length=1)
    output_folder: Path
    work_folder: Path
    seed: int = 0
