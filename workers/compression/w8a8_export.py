"""`python -m workers.compression.w8a8_export FOLDER OUT`: an INT8 version as servers of W8A8 checkpoints (vLLM, SGLang, transformers) load it.

The matrices stay as they are, byte for byte. What differs from our own folder, because those servers do not express it:

- Embeddings are BF16, and the output matrix is a tensor of its own: no server looks up, and multiplies by, one int8 tensor.
- gpt_oss: activations are `gate · σ(1.702 · gate)` there, whatever config.json says; so gates' scales are divided and downs' multiplied by 1.702,
  which is the same function (up to the clamp at 7 that they have). The neutral biases are BF16, each with its expert.
- Our own keys of config.json are left out.
"""

import argparse
from pathlib import Path
from typing import Any

from workers.compression import quantization
from workers.compression.folders import storage_of
from workers.compression.quantization import SCALE, Tensors
from workers.moe import BrokenModel, load_tokenizer, save_tensors
from workers.moe.checkpoint import read_config_json
from workers.moe.shards import Shards
from workers.protocol import JobError

ALPHA, LIMIT = 1.702, 7.0  # of gpt-oss, fixed in servers
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def export(folder: Path, into: Path) -> None:
    """BrokenModel or JobError where `folder` is not that of an INT8 version."""
    if storage_of(folder).get("format") != quantization.FORMAT:
        raise JobError(f"{folder.name} is not an INT8 version; only such is exported as W8A8.")
    described = read_config_json(folder)
    if "quantization_config" not in described:
        raise JobError(f"{folder.name} was written by an earlier version of this program; compress its parent again.")
    shards = Shards(folder)
    tensors = {name: shards.read(name).clone() for name in shards.names}
    embedded(tensors)
    changes: dict[str, Any] = {"tie_word_embeddings": False, "dtype": "bfloat16"}
    if described["model_type"] == "gpt_oss":
        in_their_units(tensors)
        changes |= {"swiglu_alpha": ALPHA, "swiglu_limit": LIMIT}
    changes["quantization_config"] = quantization.quantization_config(tensors, tied=False)
    written = {name: value for name, value in described.items() if name != "storage"} | changes
    card = (folder / "README.md").read_text(encoding="utf-8") if (folder / "README.md").exists() else ""
    save_tensors(into, written, tensors, load_tokenizer(folder), card)


def embedded(tensors: Tensors) -> None:
    """Embedding and output matrix as BF16, both."""
    for name in (EMBEDDING, HEAD):
        if name + SCALE in tensors:
            tensors[name] = quantization.dequantize(tensors[name], tensors.pop(name + SCALE)).bfloat16()
    tensors.setdefault(HEAD, tensors[EMBEDDING].clone())


def in_their_units(tensors: Tensors) -> None:
    """A gate g becomes g / 1.702: g/1.702 · σ(1.702 · g/1.702) = g · σ(g) / 1.702, which down undoes."""
    for name in list(tensors):
        if ".experts." in name and name.endswith((f"gate_proj.weight{SCALE}", f"down_proj.weight{SCALE}")):
            tensors[name] = tensors[name].float() * (ALPHA if "down_proj" in name else 1 / ALPHA)
        elif name.endswith("experts.gate_up_proj_bias"):
            for expert, bias in enumerate(tensors.pop(name).bfloat16()):
                gate, up = bias[0::2].clone(), bias[1::2].clone()
                tensors[name.replace("gate_up_proj_bias", f"{expert}.gate_proj.bias")] = gate
                tensors[name.replace("gate_up_proj_bias", f"{expert}.up_proj.bias")] = up
        elif name.endswith("experts.down_proj_bias"):
            for expert, bias in enumerate(tensors.pop(name).bfloat16()):
                tensors[name.replace("down_proj_bias", f"{expert}.down_proj.bias")] = bias.clone()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("into", type=Path)
    given = parser.parse_args()
    try:
        export(given.folder, given.into)
    except (BrokenModel, JobError) as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
