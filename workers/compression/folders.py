"""What all methods do with model folders: open the parent, describe the child."""

import json
from pathlib import Path
from typing import Any

from workers.compression.applicable import applicable
from workers.moe import BrokenModel, ChatTokenizer, Decoder, ModelConfig, UnsupportedModel, count_parameters, load_model, read_config
from workers.protocol import JobError


def load_parent(folder: Path, method: str = "", *, int8: bool = False) -> tuple[Decoder, ChatTokenizer]:
    """The model in FP32 and its tokenizer; with `int8`, such a one is decoded.

    JobError where it is damaged, or INT8 already, or has what `method` does not express.
    """
    if not int8 and storage_of(folder).get("format") == "int8":
        raise JobError("This model is INT8 already; compress its parent instead.")
    try:
        if why := applicable("", method, read_config(folder).as_dict()):
            raise JobError(why)
        return load_model(folder)
    except (BrokenModel, UnsupportedModel) as error:
        raise JobError(f"The model cannot be opened: {error}") from error


def storage_of(folder: Path) -> dict[str, Any]:
    try:
        storage = json.loads((folder / "config.json").read_text()).get("storage")
    except FileNotFoundError as error:
        raise JobError(f"{folder.name} is not a model folder: it has no config.json.") from error
    except (ValueError, AttributeError) as error:
        raise JobError(f"The config.json of {folder.name} cannot be read: {error}.") from error
    return storage if isinstance(storage, dict) else {}


def model_card(parent: Path, title: str, text: str) -> str:
    """The README.md of a child: what was done, above what the parent's says."""
    card = parent / "README.md"
    above = card.read_text(encoding="utf-8") if card.exists() else ""
    return f"# {title}\n\n{text}\n\n## Its parent\n\n{above}".rstrip() + "\n"


def describe_result(kind: str, config: ModelConfig, details: dict[str, Any]) -> dict[str, Any]:
    """What `done` says of a finished child."""
    total, active = count_parameters(config)
    return {"kind": kind, "total_parameters": total, "active_parameters": active, "config": config.as_dict(), "details": details}
