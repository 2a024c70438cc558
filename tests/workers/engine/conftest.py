import pytest
import torch

from workers.engine import Engine, open_engine
from workers.moe import ChatTokenizer, Decoder, ModelConfig, load_model, save_model

TEXTS = [
    "What is photosynthesis? Photosynthesis turns carbon dioxide and water into sugar.",
    "光合作用是什么？光合作用把二氧化碳和水变成糖。🌱🌍 naïve café",
    "Who wrote it? It was written in 1859, they say.",
] * 4


@pytest.fixture(scope="session")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer.train(TEXTS, 450)


@pytest.fixture(scope="session")
def make_folder(tokenizer, tmp_path_factory):
    """A saved random model, its weights large enough that its answers differ from question to question."""

    def make(**changes):
        config = ModelConfig(
            vocab_size=tokenizer.vocab_size, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_expert=16, n_experts=4, top_k=2,
            max_seq_len=96,
        ).with_(**changes)  # fmt: skip
        model, generator = Decoder(config), torch.Generator().manual_seed(3)
        model.initialise(generator)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(8 if parameter.dim() > 1 else 1).add_(torch.randn(parameter.shape, generator=generator) * 0.05)
            if config.tie_embeddings:  # else a token's likeliest successor is itself
                model.head.weight = torch.nn.Parameter(model.embedding.weight.flip(0).clone())
        folder = tmp_path_factory.mktemp("models") / "model"
        model.config = config.with_(tie_embeddings=False)
        save_model(folder, model, tokenizer, "A test.")
        return folder

    return make


@pytest.fixture(scope="session")
def folder(make_folder):
    return make_folder()


@pytest.fixture(scope="session")
def model(folder):
    return load_model(folder)[0]


@pytest.fixture
def engine(folder):
    with_slots: Engine = open_engine(folder, max_batch=8)
    yield with_slots
    with_slots.close()
