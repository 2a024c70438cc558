"""Where an inference worker runs its models."""

from pathlib import Path

import pytest
import torch

from apps.registry import services as registry
from tests.apps.answering import tokenizer
from workers.engine import SamplingParams
from workers.engine.torch_runner import TorchRunner
from workers.moe import Decoder, ModelConfig, save_model
from workers.tasks.engines import Engines

pytestmark = pytest.mark.django_db


def test_the_worker_runs_models_on_the_device_of_the_setting(settings):
    settings.DEVICE = "cpu:0"  # PyTorch's own name of the processor: by its modules, as on a GPU, and not by compiled code
    config = ModelConfig(
        vocab_size=tokenizer().vocab_size, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_expert=8, n_experts=2, top_k=1, max_seq_len=64
    )  # fmt: skip
    folder = Path(settings.WORK_ROOT) / "on-a-device"
    model = Decoder(config)
    model.initialise(torch.Generator().manual_seed(0))
    save_model(folder, model, tokenizer(), "A test.")
    result = {"total_parameters": 1000, "active_parameters": 500, "config": config.as_dict()}
    version = registry.register_version(kind="moe", folder=folder, parent=None, run=None, result=result, actor=None, name="v1")
    engines = Engines(1, 10**9)
    with engines.lent(version.pk) as engine:
        assert isinstance(engine._runner, TorchRunner)
        assert engine.submit([{"role": "user", "content": "water"}], SamplingParams(max_tokens=3)).result(120).tokens == 3
    engines.close()
