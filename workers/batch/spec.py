"""The spec of a batch (docs/architecture.md)."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class BatchSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    version: Literal[1]
    model_folder: Path
    inputs: list[Path] = Field(min_length=1, description="JSONL, read one after the other")
    output_folder: Path
    work_folder: Path
    max_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=0.0, ge=0.0)
    system: str = Field(default="", description="said before each prompt that brings no system message")
    threads: int = Field(default=1, ge=1)
    cache_bytes: int = Field(default=512 * 1024**2, ge=1, description="what keys and values may take")
    seed: int = Field(default=0, description="where the temperature is not 0; each row has its own")
