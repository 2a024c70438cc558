"""The image front end inside the decoder, and beside it on disk."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from workers.moe import BrokenModel, ChatTokenizer, load_model, read_config, save_model
from workers.moe.vision import PatchEmbedding

SEES = {"image_size": 16, "patch_size": 8}


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_patches_are_a_convolution_whose_stride_is_its_kernel(make_model):
    vision = make_model(**SEES).vision
    images = pictures(3)
    # The weight's inputs are (row, column, colour) of a patch; a convolution's kernel is (colour, row, column).
    kernel = vision.patch.weight.view(-1, 8, 8, 3).permute(0, 3, 1, 2)
    expected = F.conv2d(images.permute(0, 3, 1, 2).float() / 127.5 - 1, kernel, vision.patch.bias, stride=8)
    expected = expected.flatten(2).transpose(1, 2) + vision.position
    torch.testing.assert_close(vision(images), expected.reshape(12, -1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("patch", "halved"), [(16, 2), (8, 2), (6, 1), (3, 0)])
def test_with_a_stem_the_patches_are_of_what_its_convolutions_see(make_model, patch, halved):
    vision = make_model(image_size=2 * patch, patch_size=patch, image_stem=4).vision
    images = torch.randint(0, 256, (3, 2 * patch, 2 * patch, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    for number in range(1 + halved):
        weight, bias = (vision.state_dict()[f"stem.{number}.{name}"] for name in ("weight", "bias"))
        seen = F.conv2d(seen, weight, bias, stride=1 + (number > 0), padding=1).clamp(min=0)
    side = patch // 2**halved
    kernel = vision.patch.weight.view(-1, side, side, seen.shape[1]).permute(0, 3, 1, 2)
    expected = F.conv2d(seen, kernel, vision.patch.bias, stride=side).flatten(2).transpose(1, 2) + vision.position
    torch.testing.assert_close(vision(images), expected.reshape(12, -1), atol=1e-5, rtol=1e-5)


def test_a_picture_changes_what_comes_after_it_and_nothing_before(make_model):
    model = make_model(**SEES)
    tokens = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(1))
    at = torch.tensor([15, 16, 17, 18])  # in the second row, from its fourth token on
    one, other = (model(tokens, images=pictures(1, seed), image_at=at) for seed in (0, 1))
    torch.testing.assert_close(one[0], other[0])
    torch.testing.assert_close(one[1, :3], other[1, :3])
    assert (one[1, 7:] - other[1, 7:]).abs().amax(-1).min() > 1e-3


def test_the_gradient_reaches_every_part_of_the_front_end(make_model):
    model = make_model(**SEES, image_stem=4).train()
    tokens = torch.randint(0, 300, (1, 12), generator=torch.Generator().manual_seed(1))
    model(tokens, images=pictures(1), image_at=torch.arange(2, 6))[:, 6:].logsumexp(-1).sum().backward()
    for name, parameter in model.vision.named_parameters():
        assert parameter.grad.abs().amax(-1).max() > 0, name
    assert model.vision.patch.weight.grad.abs().amax(-1).min() > 0


def test_in_training_a_batch_without_pictures_has_gradients_of_zero(make_model):
    model = make_model(**SEES, image_stem=4).train()
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.vision.parameters())


@pytest.mark.parametrize(("router", "stem"), [("softmax", 0), ("sigmoid", 4)])
def test_a_folder_keeps_the_front_end_beside_a_text_part_that_others_load(make_model, tokenizer, tmp_path, router, stem):
    model = make_model(router=router, **SEES, image_stem=stem)
    save_model(tmp_path / "model", model, tokenizer, "A test.")
    again, _ = load_model(tmp_path / "model")
    tokens = torch.randint(0, 300, (1, 12), generator=torch.Generator().manual_seed(1))
    seen = {"images": pictures(1), "image_at": torch.arange(2, 6)}
    assert (again.config.image_size, again.config.patch_size, again.config.image_stem) == (16, 8, stem)
    assert torch.equal(again(tokens, **seen), model(tokens, **seen))

    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["unexpected_keys"] and not report["missing_keys"]
    with torch.no_grad():
        assert (theirs(tokens).logits - model(tokens)).abs().max() <= 1e-4


def test_a_damaged_front_end_is_named_and_a_missing_one_leaves_a_model_of_text(make_model, tokenizer, tmp_path):
    save_model(tmp_path / "model", make_model(**SEES), tokenizer, "A test.")
    file = tmp_path / "model" / "vision.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(BrokenModel, match=r"vision\.safetensors"):
        read_config(tmp_path / "model")
    file.unlink()
    assert load_model(tmp_path / "model")[0].vision is None


def test_patches_stand_before_the_question_and_text_cannot_write_them():
    tokenizer = ChatTokenizer.train(["What is it? It is red."] * 4, 300, pictures=True)
    ids = tokenizer.encode_prompt([{"role": "user", "content": "What <|image|> is it?", "image": "data:…"}], image_tokens=4)
    assert [i for i, token in enumerate(ids) if token == tokenizer.image_id] == [1, 2, 3, 4]
    assert "<|image|>" in tokenizer.decode(ids)
    assert tokenizer.encode_prompt([{"role": "user", "content": "Red?"}]) == tokenizer.encode_prompt([{"role": "user", "content": "Red?"}], 4)


def test_a_picture_of_a_size_that_patches_do_not_divide_is_refused(make_model):
    with pytest.raises(ValueError, match="multiple of patch_size"):
        make_model(image_size=20, patch_size=8)
    assert PatchEmbedding(make_model(**SEES).config).position.shape == (4, 32)
