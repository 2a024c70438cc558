import torch

from workers.compression import quantization
from workers.compression.w8a8 import quantization_config


def test_weights_are_those_of_torchs_per_channel_quantization():
    weight = torch.randn(40, 64) * torch.logspace(-4, 2, 40)[:, None]
    values, scale = quantization.quantize(weight)
    reference = torch.fake_quantize_per_channel_affine(weight, scale.flatten().float(), torch.zeros(40, dtype=torch.int32), 0, -127, 127)
    assert torch.allclose(quantization.dequantize(values, scale), reference, rtol=1e-5, atol=1e-9)


def test_no_weight_is_off_by_more_than_half_a_scale():
    weight = torch.randn(30, 50) * torch.logspace(-9, 3, 30)[:, None]
    values, scale = quantization.quantize(weight)
    error = (quantization.dequantize(values, scale) - weight).abs()
    assert (error <= scale.float() * 0.5 * (1 + 1e-5)).all()


def test_a_row_of_zeros_stays_zero():
    values, scale = quantization.quantize(torch.zeros(2, 8))
    assert not quantization.dequantize(values, scale).any()


def test_stacked_experts_are_stored_one_by_one_and_stacked_again():
    stacked = {"mlp.experts.gate_up_proj": torch.randn(3, 16, 10), "mlp.experts.down_proj": torch.randn(3, 5, 16)}
    stored = quantization.encode(stacked)
    assert stored["mlp.experts.2.up_proj.weight"].shape == (5, 16)
    assert stored["mlp.experts.2.down_proj.weight_scale"].shape == (16, 1)
    again = quantization.decode(stored, {"experts_apart": True})
    for name, tensor in stacked.items():
        assert ((again[name] - tensor).abs() <= tensor.abs().amax(1, keepdim=True) / 127 * 0.501).all(), name


def test_a_matrix_that_is_kept_stays_floating_point_and_config_json_says_so():
    stored = quantization.encode(
        {"mlp.experts.down_proj": torch.randn(2, 5, 16), "model.embed_tokens.weight": torch.randn(7, 16)}, kept=["mlp.experts.down_proj"]
    )
    assert stored["mlp.experts.1.down_proj.weight"].is_floating_point()
    assert quantization_config(stored, tied=True)["ignore"] == ["mlp.experts.0.down_proj", "mlp.experts.1.down_proj", "lm_head"]


def test_routers_and_norms_are_kept_as_they_are():
    tensors = {"model.layers.0.mlp.router.weight": torch.randn(4, 16), "model.norm.weight": torch.randn(16)}
    decoded = quantization.decode(quantization.encode(tensors), {})
    assert all(torch.equal(decoded[name], tensor) for name, tensor in tensors.items())
