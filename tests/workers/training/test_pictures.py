"""Questions about pictures are packed, trained and told like any other."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.workers.training.test_batches import example
from workers.moe import ChatTokenizer, Decoder, ModelConfig, as_data_url, load_model
from workers.training.batches import NO_TARGET, pack
from workers.training.examples import Example, encode
from workers.training.finish import finish
from workers.training.loop import Loop
from workers.training.prepare import prepare
from workers.training.ranks import Ranks
from workers.training.specialisation import MODALITIES, specialisation

ALONE = Ranks(0, 1, 1, torch.device("cpu"))
COLOURS = ("red", "lime", "blue", "yellow")
SEES = {"image_size": 16, "patch_size": 8}


def picture_of(colour: str) -> str:
    return as_data_url(Image.new("RGB", (16, 16), colour))


def about(colour: str, **more) -> dict:
    return {
        "kind": "question",
        "question": "What colour is it?",
        "answer": f"It is {colour}.",
        "image": picture_of(colour),
        "domain": "colour",
        **more,
    }


@pytest.fixture
def pictures(dataset, write_lines):
    """The facts, and a question about each of four pictures."""
    text = (dataset / "train.jsonl").read_text().splitlines()
    write_lines(dataset / "train.jsonl", [about(c) for c in COLOURS])
    with (dataset / "train.jsonl").open("a") as file:
        file.writelines(line + "\n" for line in text)
    write_lines(dataset / "eval.jsonl", [about("red")])
    return dataset


def pictured(length: int, seed: int, at: list[int]) -> Example:
    plain = example(length, seed, learnt_from=length // 2)
    images = tuple(np.random.default_rng(seed + i).integers(0, 256, (16, 16, 3), np.uint8) for i in range(len(at)))
    return Example(plain.ids, plain.learnt, "law", 1.0, images=images, image_at=np.concatenate([np.arange(a, a + 4) for a in at]))


def test_a_packed_batch_with_pictures_gives_the_loss_and_gradients_of_each_example_alone():
    examples = [pictured(21, 1, [1]), example(40, 2), pictured(60, 3, [1, 9]), example(7, 4), pictured(12, 5, [2]).followed_by(pictured(9, 6, [0]))]
    model = Decoder(ModelConfig(300, 32, 2, 4, 2, 8, 16, 4, 2, **SEES)).train()
    model.initialise(torch.Generator().manual_seed(0))

    batch = pack(examples)
    logits = model(
        batch.tokens, positions=batch.positions, mask=batch.mask, valid=batch.valid, select=batch.select, images=batch.images, image_at=batch.image_at
    )
    packed = F.cross_entropy(logits, batch.targets)
    gradients = torch.autograd.grad(packed, list(model.parameters()))

    total = torch.zeros(())
    for e in examples:
        ids = torch.from_numpy(e.ids).long()[None]
        targets = torch.where(torch.from_numpy(e.learnt)[1:], ids[0, 1:], NO_TARGET)
        seen = {"images": torch.from_numpy(np.stack(e.images)), "image_at": torch.from_numpy(e.image_at)} if e.images else {}
        total = total + F.cross_entropy(model(ids, **seen)[0, :-1], targets, reduction="sum")
    alone = total / sum(e.learnt_count for e in examples)
    torch.testing.assert_close(packed, alone)
    for ours, theirs in zip(gradients, torch.autograd.grad(alone, list(model.parameters())), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_a_run_learns_to_tell_pictures_apart_and_its_folder_still_does(make_spec, pictures, tiny):
    spec = make_spec(steps=250, micro_batch=8, lr=1e-2, image_size=16, model={**tiny, "n_experts": 4}, conversations=0.0)
    prepared = prepare(spec, ALONE)
    assert prepared.questions[0].image == picture_of("red")
    progress = Loop(spec, ALONE, prepared).run()
    result = finish(spec, ALONE, prepared, progress)

    assert result["config"]["image_size"] == 16
    assert result["domains"][-2:] == list(MODALITIES)
    model, tokenizer = load_model(spec.output_folder)
    from workers.moe import generate

    for colour in COLOURS:
        assert generate(model, tokenizer, "What colour is it?", image=picture_of(colour)) == f"It is {colour}."


def test_the_heatmap_has_columns_of_their_own_for_picture_and_text_tokens():
    model = Decoder(ModelConfig(300, 32, 2, 4, 2, 8, 16, 4, 1, **SEES)).eval()
    model.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():  # text points one way, patches the other, and the first router follows
        model.embedding.weight.copy_(torch.eye(32)[0].expand(300, 32) * 9)
        model.vision.patch.bias.copy_(torch.eye(32)[0] * -99)
        model.routers()[0].weight.zero_()
        model.routers()[0].weight[:2, 0] = torch.tensor([9.0, -9.0])
        model.blocks[0].attention.out.weight.zero_()
    told = specialisation(model, [pictured(20, s, [1]) for s in range(3)] + [example(9, 9)])
    assert told["domains"] == ["law", *MODALITIES]
    first, second = np.array(told["expert_domain"])  # experts × columns
    assert np.allclose(first.sum(0), 1) and np.allclose(second.sum(0), 1, atol=1e-3)
    assert first.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 0]]  # law is text
    modality = told["specialisation"]["modality"]
    assert modality["layers"][0] == pytest.approx(modality["entropy"]) and 0.5 < modality["entropy"] < 1
    assert specialisation(model, [example(9, 9)])["domains"] == ["law"]


def test_a_parent_without_a_front_end_leaves_pictures_out_and_says_so(make_spec, dataset, pictures, write_lines):
    kept = (dataset / "train.jsonl").read_text()
    write_lines(dataset / "train.jsonl", [{"kind": "question", "question": "What is gold?", "answer": "gold is element 0."}])
    parent = make_spec("parent", steps=1)
    prepared = prepare(parent, ALONE)
    finish(parent, ALONE, prepared, Loop(parent, ALONE, prepared).run())
    (dataset / "train.jsonl").write_text(kept)

    child = prepare(make_spec("child", model=None, parent_folder=parent.output_folder), ALONE)
    assert not any(e.images for e in child.examples)
    assert any("about a picture, which the parent has not learnt to see" in note for note in child.notes)


def test_a_damaged_picture_is_left_out():
    tokenizer = ChatTokenizer.train(["What colour is it? It is red."] * 4, 300, pictures=True)
    config = ModelConfig(300, 32, 2, 4, 2, 8, 16, 4, 2, **SEES)
    examples, without = encode([about("red"), about("red", image="AAAA"), about("blue")], tokenizer, 64, config)
    assert (len(examples), without) == (2, 1)
    assert examples[0].images[0][0, 0].tolist() == [255, 0, 0]


def test_ranks_without_a_picture_in_their_batch_keep_step_with_the_others(make_spec, pictures, run_child, tiny):
    child = run_child(make_spec(steps=6, micro_batch=1, world_size=2, zero_stage=1, image_size=16, model={**tiny, "n_experts": 4}))
    assert child.result["config"]["image_size"] == 16
