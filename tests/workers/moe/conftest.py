import pytest
import torch

from workers.moe.config import ModelConfig
from workers.moe.model import Decoder
from workers.moe.tokenizer import ChatTokenizer

TEXTS = [
    "What is photosynthesis? Photosynthesis turns carbon dioxide and water into sugar.",
    "光合作用是什么？光合作用把二氧化碳和水变成糖。",
    "Who wrote it? It was written in 1859, they say.",
] * 4


@pytest.fixture(scope="session")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer.train(TEXTS, 400)


@pytest.fixture
def make_model(tokenizer):
    def make(seed: int = 0, **changes) -> Decoder:
        config = ModelConfig(
            vocab_size=tokenizer.vocab_size, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_expert=16, n_experts=4, top_k=2, max_seq_len=64
        ).with_(**changes)  # fmt: skip
        model = Decoder(config)
        generator = torch.Generator().manual_seed(seed)
        model.initialise(generator)
        with torch.no_grad():  # larger than at the start of training, so that a wrong formula shows
            for parameter in model.parameters():
                parameter.mul_(4 if parameter.dim() > 1 else 1).add_(torch.randn(parameter.shape, generator=generator) * 0.05)
            for router in model.routers():
                router.bias.copy_(torch.randn(router.bias.shape, generator=generator) * 0.3)
        return model.eval()

    return make
