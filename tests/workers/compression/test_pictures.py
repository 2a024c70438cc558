"""A compressed child of a model that sees pictures sees them too."""

from contextlib import closing

import numpy as np
import orjson
import pytest
import torch

from demo.pictures import records
from workers.compression import quantization
from workers.compression.distill import divergence
from workers.compression.learning import read_examples
from workers.compression.onnx_card import card_of
from workers.compression.prune import prune, save_pruned
from workers.compression.runners import open_runner
from workers.compression.spec import CompressSpec
from workers.compression.students import new_student, student_config
from workers.engine import Chunk
from workers.engine.front_end import read_front_end
from workers.moe import ChatTokenizer, Decoder, ModelConfig, export_tensors, load_model, pixels_of, save_model, save_tensors, vision_of
from workers.training import pack

ROWS = list(records(20, seed=0, size=16))


@pytest.fixture(scope="module")
def tokenizer():
    return ChatTokenizer.train([row["question"] + row["answer"] for row in ROWS] * 2, 400, pictures=True)


@pytest.fixture(scope="module")
def model(tokenizer) -> Decoder:
    config = ModelConfig(tokenizer.vocab_size, 64, 2, 4, 2, 16, 64, 4, 2, max_seq_len=200, image_size=16, patch_size=8)
    model = Decoder(config)
    model.initialise(torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    save_model(tmp_path / "parent", model, tokenizer, "A test.")
    return tmp_path / "parent"


def test_a_picture_changes_an_int8_childs_logits_as_it_does_its_parents(model, tokenizer, tmp_path):
    stored = quantization.encode(export_tensors(model.config, {k: v.detach() for k, v in model.state_dict().items()}))
    save_tensors(tmp_path / "int8", quantization.describe_quantized(model.config, tokenizer, stored), stored, tokenizer, "A test.", vision_of(model))

    tokens = np.random.default_rng(0).integers(0, tokenizer.vocab_size, 180).tolist()
    rows = read_front_end(tmp_path / "int8", 64).rows(ROWS[0]["image"])
    images, at = torch.from_numpy(pixels_of(ROWS[0]["image"], 16))[None], torch.arange(170, 174)
    with torch.inference_mode():
        expected = model(torch.tensor([tokens]), images=images, image_at=at)[0, -1].numpy()
        blind = model(torch.tensor([tokens]))[0, -1].numpy()
    runner = open_runner(tmp_path / "int8", threads=2, max_batch=3, max_seq_len=200)
    with closing(runner):
        # Together longer than a piece of the runner's, which ends in the middle of the second.
        found = runner.forward([Chunk(2, 0, tokens[:150]), Chunk(0, 0, tokens, [(170, rows)])])[1]
    effect, wanted = found - blind, expected - blind  # of the picture
    assert effect @ wanted / np.linalg.norm(effect) / np.linalg.norm(wanted) > 0.9


@pytest.mark.parametrize("structure", ["unstructured", "neuron"])
def test_a_pruned_child_keeps_the_front_end(folder, tokenizer, tmp_path, structure):
    spec = CompressSpec(
        method="prune", model_folder=folder, output_folder=tmp_path / "pruned", work_folder=tmp_path, sparsity=0.5, structure=structure
    )
    parent, _ = load_model(folder)
    worth = None
    if structure == "neuron":
        from workers.compression.structure import by_weight

        worth = by_weight(parent)
    save_pruned(prune(parent, spec, worth)[0], tokenizer, spec)
    child, _ = load_model(tmp_path / "pruned")
    assert torch.equal(child.vision.patch.weight, parent.vision.patch.weight)


def test_a_student_sees_and_is_taught_with_the_pictures(model, tokenizer, tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b"".join(orjson.dumps({"kind": "question", **row}) + b"\n" for row in ROWS))
    config = student_config(model.config, None)
    examples = read_examples(tmp_path, tokenizer, config)
    assert len(examples) == len(ROWS) and all(example.images for example in examples)
    assert divergence(model, new_student(model, config, examples, 0).eval(), pack(examples[:8])) > 0


def test_the_card_of_a_graph_says_that_it_sees_no_pictures(model, folder):
    assert "reads text only" in card_of(folder, model.config, int8=True)
    assert "reads text only" not in card_of(folder, model.config.with_(image_size=0), int8=True)
