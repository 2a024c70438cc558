"""Latent attention in a model of our own."""

import torch

from workers.moe.attention import Seen
from workers.moe.cache import KVCache
from workers.moe.model import Decoder

LATENT = {"router": "sigmoid", "n_kv_heads": 4, "head_dim": 12, "kv_rank": 16, "q_rank": 20, "rope_head_dim": 4, "value_head_dim": 8}


def test_the_cache_holds_the_latents_and_gives_the_logits_of_the_whole_sequence(make_model):
    model = make_model(**LATENT)
    tokens = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    cache = KVCache(model.config, batch=2, capacity=20)
    parts = [model(tokens[:, a:b], cache=cache) for a, b in ((0, 7), (7, 8), (8, 13), (13, 20))]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), atol=1e-5, rtol=1e-4)
    held = sum(layer.keys.untyped_storage().nbytes() for layer in cache.layers)
    assert all(layer.values.untyped_storage().data_ptr() == layer.keys.untyped_storage().data_ptr() for layer in cache.layers)
    assert held == 4 * 2 * 20 * model.config.cached_numbers_a_token == 4 * 2 * 20 * 2 * (16 + 4)


def test_every_weight_learns_and_the_gradient_is_that_of_differences(make_model):
    model = make_model(**LATENT).double()
    model.rebuild_tables()
    model.cos, model.sin = model.cos.double(), model.sin.double()
    attention = model.blocks[0].attention
    x = torch.randn(1, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss() -> torch.Tensor:
        q, k, v = attention._expanded(x, model.cos[:6], model.sin[:6])
        return attention.out(attention.attend(q, k, v, Seen()).transpose(1, 2).flatten(-2)).square().sum()

    loss().backward()
    for name, parameter in attention.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        at, step = int(parameter.grad.abs().argmax()), 1e-6
        flat = parameter.data.view(-1)
        with torch.no_grad():
            flat[at] += step
            above = loss()
            flat[at] -= 2 * step
            below = loss()
            flat[at] += step
        torch.testing.assert_close(parameter.grad.view(-1)[at], (above - below) / (2 * step), rtol=1e-5, atol=1e-6)


def test_it_learns(make_model):
    torch.manual_seed(0)
    model = Decoder(make_model(**LATENT).config)
    model.initialise(torch.Generator().manual_seed(0))
    tokens = torch.randint(0, 300, (4, 16), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(4, 1, 16, 16, dtype=torch.bool).tril()
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(30):
        out = model(tokens, mask=mask)[:, :-1].flatten(0, 1)
        losses.append(torch.nn.functional.cross_entropy(out, tokens[:, 1:].flatten()))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]
