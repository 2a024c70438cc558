"""Pictures in a conversation: each runner against the decoder's own forward, and the engine from message to answer."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from workers.engine import Chunk, PictureRefused, SamplingParams, UnusableModel, open_engine
from workers.engine.front_end import read_front_end
from workers.engine.fused_runner import FusedRunner
from workers.engine.fused_weights import read_weights
from workers.engine.torch_runner import open_torch_runner
from workers.moe import ChatTokenizer, Decoder, ModelConfig, as_data_url, generate, load_model, pixels_of, save_model

SIZE, PATCHES = 32, 16


def open_fused(folder, *, threads=1, **room):
    return FusedRunner(read_weights(folder, json.loads((folder / "config.json").read_text())), threads=threads, **room)


RUNNERS = {
    "torch": lambda folder, **room: open_torch_runner(folder, threads=1, **room),
    "fused": open_fused,
    "fused, two threads": lambda folder, **room: open_fused(folder, threads=2, **room),
}


def picture(seed: int) -> str:
    return as_data_url(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)))


@pytest.fixture(scope="module", params=[0, 4], ids=["plain patches", "convolutions"])
def sees(request, tmp_path_factory):
    """A saved random model with an image front end whose answers depend on the picture."""
    tokenizer = ChatTokenizer.train(["What colour is it? It is red, and blue."] * 4, 400, pictures=True)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_expert=16, n_experts=4, top_k=2, max_seq_len=256,
        tie_embeddings=False, image_size=SIZE, patch_size=8, image_stem=request.param,
    )  # fmt: skip
    model, generator = Decoder(config), torch.Generator().manual_seed(3)
    model.initialise(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1).add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model(folder, model, tokenizer, "A test.")
    return folder


@pytest.fixture(scope="module")
def model(sees):
    return load_model(sees)[0]


def test_the_front_end_gives_the_decoders_own_rows(sees, model):
    expected = model.vision(torch.from_numpy(pixels_of(picture(0), SIZE))[None])
    expected = expected.detach().numpy()
    assert abs(read_front_end(sees, 32).rows(picture(0)) - expected).max() < 1e-5 * max(1.0, abs(expected).max())


@pytest.mark.parametrize("name", RUNNERS)
def test_a_runner_gives_the_decoders_logits_however_the_prompt_is_cut(sees, model, name):
    """Two sequences, one with two pictures of which one is cut in the middle, one of text, longer than the fused decoder's pieces together."""
    front_end = read_front_end(sees, 32)
    rng = np.random.default_rng(1)
    tokens = [rng.integers(0, model.config.vocab_size, length).tolist() for length in (140, 30)]
    at = [5, 60]
    rows = [front_end.rows(picture(seed)) for seed in (0, 1)]
    images = torch.from_numpy(np.stack([pixels_of(picture(seed), SIZE) for seed in (0, 1)]))
    image_at = torch.from_numpy(np.concatenate([np.arange(a, a + PATCHES) for a in at]))
    with torch.inference_mode():
        expected = [
            model(torch.tensor([tokens[0]]), images=images, image_at=image_at)[0].numpy(),
            model(torch.tensor([tokens[1]]))[0].numpy(),
        ]

    runner = RUNNERS[name](sees, max_batch=3, max_seq_len=200)
    text = Chunk(2, 0, tokens[1])
    whole = runner.forward([text, Chunk(0, 0, tokens[0], list(zip(at, rows, strict=True)))])
    assert abs(whole[0] - expected[1][-1]).max() <= 1e-4 and abs(whole[1] - expected[0][-1]).max() <= 1e-4

    first = runner.forward([Chunk(1, 0, tokens[0][:66], [(5, rows[0]), (60, rows[1][:6])])])
    assert abs(first[0] - expected[0][65]).max() <= 1e-4
    second = runner.forward([Chunk(1, 66, tokens[0][66:100], [(0, rows[1][6:])]), text])
    assert abs(second[0] - expected[0][99]).max() <= 1e-4
    runner.close()


def test_the_engine_answers_about_pictures_as_the_decoder_does_and_side_by_side(sees, model):
    engine = open_engine(sees, max_batch=4)
    asked = [[{"role": "user", "content": "What colour is it?", "image": picture(seed)}] for seed in range(6)]
    asked.append([{"role": "user", "content": "What colour is it?"}])
    tokenizer = ChatTokenizer.load(sees)
    expected = [generate(model, tokenizer, "What colour is it?", 12, image=message[0].get("image")) for message in asked]
    assert len(set(expected)) > 3  # the answer comes from the picture

    answers = engine.generate_all(asked, max_tokens=12)
    assert [a.text for a in answers] == expected
    assert answers[0].prompt_tokens == answers[-1].prompt_tokens + PATCHES
    together = [*asked[0], {"role": "assistant", "content": "It is red."}, *asked[1]]
    assert engine.submit(together, SamplingParams(max_tokens=4)).result(30).prompt_tokens > 2 * PATCHES
    with pytest.raises(PictureRefused, match="no PNG or JPEG"):
        engine.submit([{"role": "user", "content": "?", "image": "AAAA"}], SamplingParams(max_tokens=4))
    engine.close()


def test_a_model_of_text_refuses_a_picture_and_goes_on_answering(engine):
    shown = [{"role": "user", "content": "What is it?", "image": picture(0)}]
    with pytest.raises(PictureRefused, match="reads text only"):
        engine.submit(shown, SamplingParams(max_tokens=4))
    seen, read = engine.generate_all([shown, [{"role": "user", "content": "What is it?"}]], max_tokens=4)
    assert (seen.text, seen.tokens) == ("", 0) and read.tokens > 0


def test_a_front_end_of_another_model_is_named(sees):
    with pytest.raises(UnusableModel, match=r"vision\.safetensors"):
        read_front_end(sees, 64)
