import json
from pathlib import Path

import pytest
import torch

from workers.compression import measure
from workers.compression.spec import CompressSpec
from workers.moe import ChatTokenizer, Decoder, ModelConfig, save_model


@pytest.fixture(autouse=True)
def measured_briefly(monkeypatch):
    """What is said of speed here need not be exact."""
    monkeypatch.setattr(measure, "LEAST_SECONDS", 1e-6)
    monkeypatch.setattr(measure, "DECODED", 8)


COLOURS = ("red", "blue", "green", "grey")
PAIRS = [(f"What is thing number {i}?", f"Thing number {i} is {COLOURS[i % 4]}.") for i in range(24)]


@pytest.fixture(scope="session")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer.train([text for pair in PAIRS for text in pair] * 2, 400)


@pytest.fixture(scope="session")
def make_model(tokenizer):
    def make(seed: int = 0, **changes) -> Decoder:
        config = ModelConfig(
            vocab_size=tokenizer.vocab_size, d_model=48, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=12, d_expert=40, n_experts=4, top_k=2, max_seq_len=96
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


ARCHITECTURES = {
    "softmax router": {},
    "sigmoid router, a dense layer, shared experts, an untied head": {
        "router": "sigmoid", "n_shared_experts": 1, "first_dense_layers": 1, "d_dense": 56, "tie_embeddings": False,
    },
    "dense": {"n_experts": 0, "top_k": 0, "d_expert": 0, "d_dense": 56},
}  # fmt: skip


@pytest.fixture(params=ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def any_model(request, make_model) -> Decoder:
    return make_model(**request.param)


@pytest.fixture
def save(tmp_path: Path, tokenizer):
    def write(model: Decoder) -> Path:
        save_model(tmp_path / "parent", model, tokenizer, "# A parent\n")
        return tmp_path / "parent"

    return write


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    folder.mkdir()
    rows = [{"kind": "question", "question": q, "answer": a, "lang": "en", "domain": "things"} for q, a in PAIRS]
    for name in ("train.jsonl", "eval.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def spec(tmp_path: Path):
    def make(method: str, model_folder: Path, **options) -> CompressSpec:
        return CompressSpec(method=method, model_folder=model_folder, output_folder=tmp_path / "child", work_folder=tmp_path / "work", **options)

    return make


@pytest.fixture(scope="session")
def pairs() -> list[tuple[str, str]]:
    return PAIRS


@pytest.fixture(scope="session")
def prompts() -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": question}] for question, _ in PAIRS[:6]]
