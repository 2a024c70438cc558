"""A Hugging Face folder from elsewhere becomes a model folder of ours: read, tried, written anew. Nothing of it is trusted or executed.

Or a PEFT folder: its adapter is added to the weights of a parent.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from workers.moe.adapters import add_adapter
from workers.moe.checkpoint import BrokenModel, load_model, load_tokenizer, read_config, save_model
from workers.moe.layouts import UnsupportedModel
from workers.moe.model import Decoder
from workers.moe.parameters import count_parameters
from workers.moe.tokenizer import ChatTokenizer, TemplateRefused
from workers.protocol import JobError, emit

PROBE = "What is photosynthesis? 光合作用是什么？ 3.14 🌱\n"
MAX_CARD_CHARACTERS = 100_000


class ImportSpec(BaseModel):
    """The spec of an import (docs/architecture.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    source_folder: Path
    output_folder: Path
    work_folder: Path
    parent_folder: Path | None = None  # the source is a PEFT adapter, to be added to this model


def import_folder(spec: ImportSpec) -> dict[str, Any]:
    """Write `output_folder` and say what the model is. JobError where the folder cannot be read, or its model cannot be asked."""
    emit("progress", progress=0.0, message="Reading the model")
    opened = spec.parent_folder or spec.source_folder
    try:
        config = read_config(opened)
        tokenizer = load_tokenizer(opened)
        _require_usable(tokenizer, config.vocab_size)
        model, _ = load_model(opened, keep_bf16=spec.parent_folder is None)
        if spec.parent_folder is not None:
            add_adapter(model, spec.source_folder)
    except (BrokenModel, UnsupportedModel) as error:
        raise JobError(f"{error} Nothing was imported.") from error
    emit("progress", progress=0.5, message="Trying it")
    _require_finite(model, tokenizer)
    emit("progress", progress=0.6, message="Writing it")
    save_model(spec.output_folder, model, tokenizer, _card(spec.source_folder))
    total, active = count_parameters(config)
    kind = "moe" if config.is_moe else "dense"
    return {"kind": kind, "total_parameters": total, "active_parameters": active, "config": config.as_dict()}


def _require_usable(tokenizer: ChatTokenizer, vocab_size: int) -> None:
    ids = tokenizer.encode(PROBE)
    if tokenizer.vocab_size > vocab_size:
        raise JobError(f"The tokenizer has {tokenizer.vocab_size:,} tokens, the model only {vocab_size:,}: they do not belong together.")
    if tokenizer.decode(ids) != PROBE:
        raise JobError("The tokenizer does not give back the text it was given; a byte-level BPE is needed, as tokenizer.json.")


@torch.inference_mode()
def _require_finite(model: Decoder, tokenizer: ChatTokenizer) -> None:
    try:
        prompt = tokenizer.encode_prompt([{"role": "user", "content": PROBE}])[-model.config.max_seq_len :]
    except TemplateRefused as error:
        raise JobError(f"{error} Nothing was imported.") from error
    with torch.autocast("cpu", torch.bfloat16, enabled=any(p.dtype == torch.bfloat16 for p in model.parameters())):
        answer = model(torch.tensor([prompt]))
    if not bool(answer.isfinite().all()):
        raise JobError("The model's answer to a first question is not a number: its weights are damaged. Nothing was imported.")


def _card(source: Path) -> str:
    """The model card that came with the folder, else a line of our own."""
    card = source / "README.md"
    if card.is_file():
        return card.read_text(errors="replace")[:MAX_CARD_CHARACTERS]
    return f"# {source.name}\n\nImported from a Hugging Face folder without a model card.\n"
