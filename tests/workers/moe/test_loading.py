"""Large folders: in shards, in BF16, and without a second copy in memory."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from workers.moe import checkpoint
from workers.moe.checkpoint import BrokenModel, load_model, save_model
from workers.moe.shards import INDEX_FILE

# Anonymous memory only: the files' own pages are the system's, which takes them back when it needs them.
MEASURE = """
import ctypes, json, sys, threading, time, pathlib, torch
from workers.moe.checkpoint import load_model

def anonymous():
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))

def watch():
    global most
    while True:
        most = max(most, anonymous())
        time.sleep(0.001)

most, measured = 0, {}
warm, *folders = map(pathlib.Path, sys.argv[1:])
load_model(warm)  # what a first load brings in by itself
threading.Thread(target=watch, daemon=True).start()
for folder in folders:
    model = None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is nobody's
    before = most = anonymous()
    model, _ = load_model(folder)
    measured[folder.name] = {"peak": max(most, anonymous()) - before, "weights": sum(p.nbytes for p in model.parameters())}
print(json.dumps(measured))
"""


def test_loading_takes_the_memory_of_one_copy(make_model, tokenizer, tmp_path):
    big = {"d_model": 256, "d_expert": 512, "n_layers": 4, "n_experts": 16, "router": "sigmoid", "tie_embeddings": False}
    save_model(tmp_path / "small", make_model(), tokenizer, "A test.")
    save_model(tmp_path / "big", make_model(**big), tokenizer, "A test.")
    child = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "big")], capture_output=True, text=True, check=True
    )
    measured = json.loads(child.stdout)["big"]
    assert measured["weights"] > 100_000_000
    # One layer's experts may be held in the form of the file besides; a second copy would make it 2.
    assert measured["peak"] < 1.2 * measured["weights"]


def test_more_than_one_file_holds_is_written_in_shards_and_read_back(make_model, tokenizer, tmp_path, monkeypatch):
    model = make_model()
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 20_000)
    save_model(tmp_path / "model", model, tokenizer, "A test.")
    shards = sorted(p.name for p in (tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    again, _ = load_model(tmp_path / "model")
    for (name, ours), (_, theirs) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name
    (tmp_path / "model" / shards[1]).unlink()
    with pytest.raises(BrokenModel, match=shards[1]):
        load_model(tmp_path / "model")


def test_an_index_that_leads_out_of_the_folder_does_not(make_model, tokenizer, tmp_path):
    save_model(tmp_path / "model", make_model(), tokenizer, "A test.")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    names = load_file(tmp_path / "elsewhere.safetensors")
    (tmp_path / "model" / INDEX_FILE).write_text(json.dumps({"weight_map": dict.fromkeys(names, "../elsewhere.safetensors")}))
    with pytest.raises(BrokenModel, match="has no elsewhere"):
        load_model(tmp_path / "model")


def test_bf16_weights_are_opened_in_fp32_with_their_very_values(make_model, tokenizer, tmp_path):
    save_model(tmp_path / "model", make_model(), tokenizer, "A test.")
    file = tmp_path / "model" / "model.safetensors"
    rounded = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
    save_file(rounded, file, metadata={"format": "pt"})
    model, _ = load_model(tmp_path / "model")
    assert model.embedding.weight.dtype == torch.float32
    assert torch.equal(model.embedding.weight, rounded["model.embed_tokens.weight"].float())
    assert torch.equal(model.blocks[1].feed_forward.experts.down, rounded["model.layers.1.mlp.experts.down_proj"].float())
