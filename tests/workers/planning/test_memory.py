"""The planner's counting beside what PyTorch really keeps."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from workers.moe import PRESETS, Decoder, ModelConfig, count_parameters, dense_twin
from workers.moe.vision import PatchEmbedding
from workers.planning import Setting, Shape, model_states, peak, rank_bytes
from workers.planning.memory import activations, logits, pictures, working_copies
from workers.training.muon import Muon
from workers.training.parallel import make_optimizer
from workers.training.ranks import Ranks
from workers.training.spec import TrainSpec

ROWS, LENGTH = 6, 96
MIXTURE = ModelConfig(300, 64, 2, 4, 2, 16, 96, 8, 2)


def shape_of(config: ModelConfig) -> Shape:
    return Shape(
        "nano", *count_parameters(config), config.vocab_size, config.d_model, config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim,
        config.d_expert or config.d_dense, config.n_experts, config.top_k, config.max_seq_len,
    )  # fmt: skip


def kept_by_autograd(config: ModelConfig, half: bool) -> int:
    """Bytes of the distinct storages that a forward pass saves, the parameters aside."""
    model = Decoder(config).train()
    model.initialise(torch.Generator().manual_seed(0))
    tokens = torch.randint(config.vocab_size, (ROWS, LENGTH))
    mask = torch.ones(ROWS, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    everything = torch.ones(ROWS, LENGTH, dtype=torch.bool)

    def loss():
        out = model(
            tokens, positions=torch.arange(LENGTH).expand(ROWS, -1), mask=mask, valid=everything, select=torch.arange(ROWS * LENGTH)
        )  # fmt: skip
        return F.cross_entropy(out.float(), tokens.reshape(-1))

    return kept_of(loss, model, half)


def kept_of(forward, module: torch.nn.Module, half: bool) -> int:
    known = {p.untyped_storage().data_ptr() for p in module.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def remember(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=half):
        made = forward()
    assert made.requires_grad
    return sum(storage.nbytes() for pointer, storage in saved.items() if pointer not in known)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "config", [MIXTURE, dense_twin(MIXTURE), MIXTURE.with_(n_kv_heads=4, top_k=3, d_expert=32)], ids=["mixture", "dense", "other"]
)
def test_activations_are_counted_as_autograd_keeps_them(config, precision):
    setting = Setting(shape_of(config), precision, ROWS, LENGTH)
    # When the forward pass ends the gradients that `logits` counts with are not there yet: two of its three copies over the vocabulary.
    gradients = 8 * ROWS * LENGTH * config.vocab_size
    counted = activations(setting).bytes + logits(setting).bytes - gradients + sum(part.bytes for part in working_copies(setting))

    assert kept_by_autograd(config, half=precision == "bf16") == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_pictures_take_is_counted_as_autograd_keeps_it(precision, tmp_path):
    spec = TrainSpec(dataset_folder=tmp_path, output_folder=tmp_path, work_folder=tmp_path, steps=1)
    config = spec.model_config_for(300, pictures=True)
    vision = PatchEmbedding(config)
    images = torch.randint(0, 256, (64, config.image_size, config.image_size, 3), dtype=torch.uint8)
    setting = Setting(shape_of(config), precision, 64, config.image_patches, patch_share=1.0)

    kept = kept_of(lambda: vision(images), vision, half=precision == "bf16")
    assert kept == pytest.approx(sum(part.bytes for part in pictures(setting)), rel=0.03)


@pytest.mark.parametrize("name", ["nano", "small"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_optimizers_state_is_counted_as_it_is_made(name, optimizer, tmp_path):
    model = Decoder(PRESETS[name])
    model.initialise(torch.Generator().manual_seed(0))
    spec = TrainSpec(dataset_folder=tmp_path, output_folder=tmp_path, work_folder=tmp_path, preset=name, steps=1, optimizer=optimizer)
    made = make_optimizer(model, spec, Ranks(0, 1, 1, torch.device("cpu")))
    assert isinstance(made, Muon)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    real = sum(value.numel() * value.element_size() for state in made.state.values() for value in state.values())

    setting = Setting(shape_of(PRESETS[name]), "fp32", 1, 96, optimizer=optimizer)

    assert model_states(setting)[2].bytes == pytest.approx(real, rel=1e-4)


def test_sharding_and_checkpointing_and_smaller_batches_each_take_less():
    asked = Setting(shape_of(PRESETS["base"]), "fp32", 32, 256, ranks=4)

    stages = [sum(part.bytes for part in model_states(replace(asked, stage=stage))) for stage in range(4)]

    assert stages == sorted(stages, reverse=True)
    assert stages[3] == pytest.approx(stages[0] / 4)
    assert rank_bytes(replace(asked, checkpointing=True)) < rank_bytes(asked)
    assert rank_bytes(replace(asked, rows=8)) < rank_bytes(asked)


@pytest.mark.parametrize("config", [MIXTURE, PRESETS["small"]])
def test_spread_experts_are_counted_as_a_rank_holds_them(config):
    with torch.device("meta"):
        sizes = {name: p.numel() for name, p in Decoder(config).named_parameters()}
    experts = sum(size for name, size in sizes.items() if ".experts." in name)

    asked = Setting(shape_of(config), "fp32", ROWS, LENGTH, ranks=4, expert_ranks=4)

    assert asked.held.total_parameters == sum(sizes.values()) - experts * 3 // 4
    weights, gradients, optimizer = (part.bytes for part in model_states(asked))
    assert weights == gradients == 4 * asked.held.total_parameters
    assert model_states(replace(asked, expert_ranks=1))[2].bytes - optimizer == 4 * experts * 3 // 4  # Muon keeps 4 B of each
    assert activations(asked) == activations(replace(asked, expert_ranks=1))  # as many tokens come as go


def test_an_average_is_a_copy_of_what_is_learnt_and_preferences_need_no_second_model():
    asked = Setting(shape_of(PRESETS["small"]), "fp32", ROWS, LENGTH, ranks=2)
    learnt = 4 * count_parameters(PRESETS["small"])[0]

    def more(**changes):
        return rank_bytes(replace(asked, **changes)) - rank_bytes(replace(asked, **{**changes, "average": False}))

    assert more(average=True) == pytest.approx(learnt)
    assert more(average=True, stage=3) == pytest.approx(learnt / 2)
    assert more(average=True, lora_rank=8) == pytest.approx(4 * asked.shape.adapter_parameters(8))
    assert rank_bytes(replace(asked, pairs=1000)) - rank_bytes(asked) == 8000


def test_the_moment_of_the_peak_moves_from_the_activations_to_the_optimizer_as_batches_shrink():
    asked = Setting(shape_of(PRESETS["base"]), "fp32", 64, 256)

    assert peak(asked)[0] == "backward begins"
    assert peak(replace(asked, rows=1, length=16))[0] == "optimizer step"


def test_large_experts_are_written_beside_the_model():
    """Blocks beyond 32 MiB find no room in what the steps left: measured on real ranks by benchmarks/zero_memory.py --presets base."""
    asked = Setting(shape_of(PRESETS["base"].with_(vocab_size=400)), "fp32", 9, 96, ranks=2)

    moment, parts = peak(asked)

    copies = {part.name: part.bytes for part in parts}["written copies"]
    assert moment == "model written" and copies == pytest.approx(4 * asked.shape.expert_parameters * 2 / 3)
    assert "written copies" not in {part.name for part in peak(replace(asked, shape=shape_of(PRESETS["small"])))[1]}
    assert peak(replace(asked, gpu=True))[0] != "model written"
