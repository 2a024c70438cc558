"""Model folders, written once and read back: Hugging Face layout, safetensors, nothing unpickled.

How another package stores weights in its own way (pruned, INT8, …): it keeps the folder and the tensors' names, adds

    "storage": {"format": "<name>", …}

to `config.json`, writes `model.safetensors` with tensors of its own, and registers at import

    register_storage("<name>", decode)      decode(tensors, storage) -> tensors under the layout's names, dense, floating point

`load_model` then opens such a folder like any other. `workers.compression` is imported when an unknown format is met, so that
nobody has to import it first.

An image front end is a file of its own, `vision.safetensors`, whose metadata say how it cuts a picture: what others load, the text
part, stays as it is, and a folder without the file is a model of text.
"""

import hashlib
import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from workers.moe.config import VISION_FILE, ModelConfig
from workers.moe.huggingface import Tensors, UnsupportedModel, export_tensors, import_tensors, layout_named, layout_of
from workers.moe.model import Decoder
from workers.moe.tokenizer import ChatTokenizer

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

Vision = tuple[Tensors, dict[str, str]]  # tensors under the decoder's names, and the file's metadata
Decode = Callable[[Tensors, dict[str, Any]], Tensors]
_STORAGES: dict[str, Decode] = {}
_STORAGE_PACKAGE = "workers.compression.storages"


class BrokenModel(ValueError):
    """A model folder lacks a file or holds a damaged one. The message names it."""


def register_storage(format_name: str, decode: Decode) -> None:
    """Let `read_tensors` open folders whose `config.json` says `storage.format = format_name`."""
    _STORAGES[format_name] = decode


# -- writing


def save_model(folder: Path, model: Decoder, tokenizer: ChatTokenizer, card: str) -> None:
    """Write a complete model folder, in FP32, under a temporary name and rename it. `card`: the text of README.md."""
    state = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in model.state_dict().items()}
    save_tensors(folder, describe(model.config, tokenizer), export_tensors(model.config, state), tokenizer, card, vision_of(model))


def vision_of(model: Decoder) -> Vision | None:
    """The image front end as it is stored; None where there is none."""
    if model.vision is None:
        return None
    tensors = {f"vision.{name}": tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in model.vision.state_dict().items()}
    return tensors, {name: str(getattr(model.config, name)) for name in ("image_size", "patch_size")}


def describe(config: ModelConfig, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """What `config.json` says of an uncompressed model."""
    ids = {"pad_token_id": tokenizer.pad_id, "bos_token_id": tokenizer.begin_id, "eos_token_id": tokenizer.end_id}
    return {**layout_of(config).describe(config), **ids}


def save_tensors(
    folder: Path, config_json: dict[str, Any], tensors: Tensors, tokenizer: ChatTokenizer, card: str, vision: Vision | None = None
) -> None:
    """Write a model folder from what its files say; the way for storages of one's own."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(tensors, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
    if vision is not None:
        save_file(vision[0], temporary / VISION_FILE, metadata=vision[1])
    _write_json(temporary / "config.json", config_json)
    ids = {name: config_json[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    _write_json(temporary / "generation_config.json", {**ids, "do_sample": False})
    tokenizer.save(temporary, config_json["max_position_embeddings"])
    (temporary / "README.md").write_text(card)
    publish_folder(temporary, folder)


def publish_folder(temporary: Path, folder: Path) -> None:
    """Give a finished folder its name. One that is there is replaced; a reader sees the old or the new one, never a half."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(folder: Path) -> list[dict[str, Any]]:
    """Name, bytes and SHA-256 of each file of a model folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [{"name": str(p.relative_to(folder)), "bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in files]


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


# -- reading


def read_config_json(folder: Path) -> dict[str, Any]:
    try:
        value = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise BrokenModel(f"{folder.name} is not a model folder: it has no config.json.") from error
    except ValueError as error:
        raise BrokenModel(f"The config.json of {folder.name} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise BrokenModel(f"The config.json of {folder.name} is not a JSON object.")
    return value


def read_config(folder: Path) -> ModelConfig:
    """The model's shape, without reading its weights. BrokenModel, UnsupportedModel."""
    described = read_config_json(folder)
    try:
        config = layout_named(described.get("model_type")).read_config(described)
    except UnsupportedModel:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenModel(f"The config.json of {folder.name} does not describe a model: {error}.") from error
    return config.with_(**_vision_sizes(folder)) if (folder / VISION_FILE).exists() else config


def _vision_sizes(folder: Path) -> dict[str, int]:
    try:
        with safe_open(folder / VISION_FILE, framework="pt") as file:
            metadata = file.metadata() or {}
        return {name: int(metadata[name]) for name in ("image_size", "patch_size")}
    except (SafetensorError, KeyError, ValueError) as error:
        raise BrokenModel(f"The {VISION_FILE} of {folder.name} is damaged: {error}.") from error


def _read_vision(folder: Path) -> Tensors:
    try:
        return load_file(folder / VISION_FILE) if (folder / VISION_FILE).exists() else {}
    except (SafetensorError, ValueError) as error:
        raise BrokenModel(f"The {VISION_FILE} of {folder.name} is damaged: {error}.") from error


def read_tensors(folder: Path) -> Tensors:
    """The weights under the layout's names, dense and floating point, however they are stored."""
    storage = read_config_json(folder).get("storage")
    raw = _read_files(folder)
    return _decoder_of(storage)(raw, storage) if storage else raw


def _read_files(folder: Path) -> Tensors:
    try:
        if (folder / INDEX_FILE).exists():
            names = sorted(set(json.loads((folder / INDEX_FILE).read_text())["weight_map"].values()))
            # A shard is a file of this folder: a path in the index must not lead out of it.
            return {k: v for name in names for k, v in load_file(folder / Path(name).name).items()}
        return load_file(folder / WEIGHTS_FILE)
    except FileNotFoundError as error:
        raise BrokenModel(f"{folder.name} has no {Path(error.filename or WEIGHTS_FILE).name}.") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise BrokenModel(f"The weights of {folder.name} are damaged: {error}.") from error


def _decoder_of(storage: dict[str, Any]) -> Decode:
    name = storage.get("format", "")
    if name not in _STORAGES:
        importlib.import_module(_STORAGE_PACKAGE)
    if name not in _STORAGES:
        raise UnsupportedModel(f"Weights stored as {name!r} cannot be read; known are {', '.join(sorted(_STORAGES)) or 'none'}.")
    return _STORAGES[name]


def load_tokenizer(folder: Path) -> ChatTokenizer:
    try:
        return ChatTokenizer.load(folder)
    except Exception as error:  # tokenizers raises nothing narrower, for a missing file too
        raise BrokenModel(f"The tokenizer.json of {folder.name} cannot be read: {error}.") from error


def load_model(folder: Path) -> tuple[Decoder, ChatTokenizer]:
    """Open a model folder of any storage: the decoder in FP32, in evaluation mode, and its tokenizer. BrokenModel, UnsupportedModel."""
    config = read_config(folder)
    layout = layout_named(read_config_json(folder)["model_type"])
    state = import_tensors(layout, config, read_tensors(folder)) | _read_vision(folder)
    with torch.device("meta"):
        model = Decoder(config)
    try:
        model.load_state_dict({k: v.float() for k, v in state.items()}, strict=True, assign=True)
    except RuntimeError as error:
        raise BrokenModel(f"The weights of {folder.name} do not fit its config.json: {error}") from error
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    model.rebuild_tables()
    return model.eval(), load_tokenizer(folder)
