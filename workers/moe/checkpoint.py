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
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from workers.moe.config import VISION_FILE, ModelConfig
from workers.moe.layouts import Entry, Tensors, UnsupportedModel, import_each, layout_named, layout_of, stored
from workers.moe.model import Decoder
from workers.moe.quantization import quantization_of
from workers.moe.quantized import Decoded
from workers.moe.shards import INDEX_FILE, WEIGHTS_FILE, Shards
from workers.moe.tokenizer import ChatTokenizer

SHARD_BYTES = 4 * 1024**3  # a larger model is written in several files, so that no more than this is held beside it

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
    """Write a complete model folder under a temporary name and rename it: in FP32, or BF16 where weights are. `card`: the text of README.md."""
    state = {
        name: tensor.detach().to("cpu", torch.bfloat16 if tensor.dtype == torch.bfloat16 else torch.float32)
        for name, tensor in model.state_dict().items()
    }
    described = describe(model.config, tokenizer)
    if model.embedding.weight.dtype == torch.bfloat16:
        described["torch_dtype"] = "bfloat16"
    save_tensors(folder, described, stored(model.config, state), tokenizer, card, vision_of(model))


def vision_of(model: Decoder) -> Vision | None:
    """The image front end as it is stored; None where there is none."""
    if model.vision is None:
        return None
    tensors = {f"vision.{name}": tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in model.vision.state_dict().items()}
    return tensors, {name: str(getattr(model.config, name)) for name in ("image_size", "patch_size", "image_stem")}


def describe(config: ModelConfig, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """What `config.json` says of an uncompressed model."""
    ends = tokenizer.end_id if len(tokenizer.end_ids) == 1 else sorted(tokenizer.end_ids)
    ids = {"pad_token_id": tokenizer.pad_id, "bos_token_id": tokenizer.begin_id, "eos_token_id": ends}
    return {**layout_of(config).describe(config), **ids}


def save_tensors(
    folder: Path,
    config_json: dict[str, Any],
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    tokenizer: ChatTokenizer,
    card: str,
    vision: Vision | None = None,
) -> None:
    """Write a model folder from what its files say; the way for storages of one's own. Tensors may be made as they are asked for."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    _write_tensors(temporary, tensors.items() if isinstance(tensors, Mapping) else tensors)
    if vision is not None:
        save_file(vision[0], temporary / VISION_FILE, metadata=vision[1])
    _write_json(temporary / "config.json", config_json)
    ids = {name: config_json[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    _write_json(temporary / "generation_config.json", {**ids, "do_sample": False})
    tokenizer.save(temporary, config_json["max_position_embeddings"])
    (temporary / "README.md").write_text(card)
    publish_folder(temporary, folder)


def _write_tensors(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """One file, or several with an index where they are more than SHARD_BYTES."""
    parts: list[list[str]] = []
    for shard in _shards_of(tensors):
        save_file(shard, folder / f"part-{len(parts)}", metadata={"format": "pt"})
        parts.append(list(shard))
    if len(parts) == 1:
        (folder / "part-0").rename(folder / WEIGHTS_FILE)
        return
    where: dict[str, str] = {}
    total = 0
    for number, names in enumerate(parts):
        file = f"model-{number + 1:05}-of-{len(parts):05}.safetensors"
        (folder / f"part-{number}").rename(folder / file)
        where |= dict.fromkeys(names, file)
        total += (folder / file).stat().st_size
    _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": where})


def _shards_of(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[Tensors]:
    shard: Tensors = {}
    held = 0
    for name, tensor in tensors:
        if shard and held + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, held = {}, 0
        shard[name] = tensor
        held += tensor.nbytes
    yield shard


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
        quantization_of(described)
    except UnsupportedModel:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenModel(f"The config.json of {folder.name} does not describe a model: {error}.") from error
    return config.with_(**_vision_sizes(folder)) if (folder / VISION_FILE).exists() else config


def _vision_sizes(folder: Path) -> dict[str, int]:
    try:
        with safe_open(folder / VISION_FILE, framework="pt") as file:
            metadata = file.metadata() or {}
        stem = int(metadata.get("image_stem", 0))  # folders from before there was one do not speak of it
        return {"image_size": int(metadata["image_size"]), "patch_size": int(metadata["patch_size"]), "image_stem": stem}
    except (SafetensorError, KeyError, ValueError) as error:
        raise BrokenModel(f"The {VISION_FILE} of {folder.name} is damaged: {error}.") from error


def _read_vision(folder: Path) -> Tensors:
    try:
        return load_file(folder / VISION_FILE) if (folder / VISION_FILE).exists() else {}
    except (SafetensorError, ValueError) as error:
        raise BrokenModel(f"The {VISION_FILE} of {folder.name} is damaged: {error}.") from error


def read_tensors(folder: Path) -> Tensors:
    """The weights under the layout's names, dense and floating point, however they are stored. All at once: for conversions."""
    storage = read_config_json(folder).get("storage")
    shards = Shards(folder)
    raw = {name: shards.read(name).clone() for name in shards.names}
    return _decoder_of(storage)(raw, storage) if storage else raw


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


def load_model(folder: Path, *, keep_bf16: bool = False) -> tuple[Decoder, ChatTokenizer]:
    """Open a model folder of any storage: the decoder in FP32, in evaluation mode, and its tokenizer. BrokenModel, UnsupportedModel.

    `keep_bf16`: weights that BF16 holds exactly stay in it; to be run under autocast, or written again.

    Weights are read one by one into their places, from files in any floating-point type, quantized ones too: beside the model, no more
    is held than one of its tensors. Only storages of one's own are decoded as a whole.
    """
    described = read_config_json(folder)
    config = read_config(folder)
    try:
        state = _read_state(folder, config, described, keep_bf16) | _read_vision(folder)
        with torch.device("meta"):
            model = Decoder(config)
        if config.tie_embeddings:
            state["head.weight"] = state["embedding.weight"]
        model.load_state_dict(state, strict=True, assign=True)
    except UnsupportedModel:
        raise
    except FileNotFoundError as error:
        raise BrokenModel(f"{folder.name} has no {Path(error.filename or WEIGHTS_FILE).name}.") from error
    except (SafetensorError, KeyError) as error:
        raise BrokenModel(f"The weights of {folder.name} are damaged: {error}.") from error
    except (RuntimeError, ValueError) as error:
        raise BrokenModel(f"The weights of {folder.name} do not fit its config.json, or are damaged: {error}") from error
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    model.rebuild_tables()
    return model.eval(), load_tokenizer(folder)


def _read_state(folder: Path, config: ModelConfig, described: dict[str, Any], keep_bf16: bool) -> Tensors:
    layout = layout_named(described["model_type"])
    if described.get("storage"):
        return dict(import_each(layout, config, described, read_tensors(folder).__getitem__, lambda entry: torch.empty(entry.shape)))
    shards, state = Shards(folder), {}
    source = Decoded(shards, quantization_of(described))

    def empty(entry: Entry) -> Tensor:
        narrow = keep_bf16 and entry.parts and all(source.is_bf16(part.theirs) for part in entry.parts)
        return torch.empty(entry.shape, dtype=torch.bfloat16 if narrow else torch.float32)

    for name, tensor in import_each(layout, config, described, source.read, empty):
        state[name] = tensor
        shards.close()  # what was read leaves the memory with the file's mapping
    return state
