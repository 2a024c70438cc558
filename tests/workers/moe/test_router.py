import torch

from workers.moe.config import ModelConfig
from workers.moe.router import Router

CONFIG = ModelConfig(vocab_size=8, d_model=6, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_expert=4, n_experts=5, top_k=2)


def make(router: str) -> Router:
    module = Router(CONFIG.with_(router=router))
    torch.nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        module.bias.copy_(torch.tensor([0.5, -1.0, 0.0, 2.0, -0.3]))
    return module


def test_softmax_router_is_the_softmax_of_wx_plus_b_over_the_k_largest():
    router, x = make("softmax"), torch.randn(9, 6, generator=torch.Generator().manual_seed(2))
    ids, weights = router(x)
    for token in range(9):
        scores = (router.weight @ x[token] + router.bias).softmax(0)
        best = scores.topk(2)
        assert ids[token].tolist() == best.indices.tolist()
        torch.testing.assert_close(weights[token], best.values / best.values.sum())


def test_sigmoid_router_uses_the_bias_for_the_selection_only():
    router, x = make("sigmoid"), torch.randn(9, 6, generator=torch.Generator().manual_seed(2))
    ids, weights = router(x)
    for token in range(9):
        scores = (router.weight @ x[token]).sigmoid()
        assert ids[token].tolist() == (scores + router.bias).topk(2).indices.tolist()
        torch.testing.assert_close(weights[token], scores[ids[token]] / scores[ids[token]].sum())


def test_balance_loss_is_one_when_the_load_is_even():
    router = make("softmax")
    with torch.no_grad():
        router.bias.zero_()
        router.weight.zero_()
    router.top_k = 5
    router(torch.randn(20, 6))
    torch.testing.assert_close(router.aux_loss, torch.tensor(1.0))
    assert router.load.tolist() == [20] * 5


def test_bias_moves_against_the_load():
    router = make("sigmoid")
    before = router.bias.clone()
    router.move_bias(torch.tensor([10, 0, 4, 4, 2]), rate=0.1)  # mean 4
    torch.testing.assert_close(router.bias - before, torch.tensor([-0.1, 0.1, 0.0, 0.0, 0.1]))
