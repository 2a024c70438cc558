import json
from contextlib import closing

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from workers.compression.int8 import run_int8
from workers.compression.int8_product import OUTPUTS, QUAD, SHIFT, compile_product, pack, product
from workers.compression.int8_runner import Int8Runner
from workers.compression.int8_torch import open_int8_torch_runner
from workers.compression.measure import weight_bytes
from workers.compression.runners import open_runner
from workers.engine import Chunk, UnusableModel, open_engine
from workers.engine.torch_runner import TorchRunner
from workers.moe import Decoder, experts, load_model

ROOM = {"threads": 1, "max_batch": 8, "max_seq_len": 96}


@pytest.mark.parametrize("multiply", [product, compile_product(vnni=False)], ids=["this processor's", "portable"])
@pytest.mark.parametrize(("outputs", "inputs", "rows"), [(64, 64, 1), (100, 33, 7), (17, 5, 3), (130, 260, 4)])
def test_products_are_those_of_whole_numbers(multiply, outputs, inputs, rows):
    random = np.random.default_rng(0)
    weight = random.integers(-127, 128, (outputs, inputs)).astype(np.int8)
    x = random.integers(1, 256, (rows, inputs)).astype(np.uint8)
    row_scale, scale = random.random(rows, np.float32), random.random(outputs, np.float32)
    padded, wide = -(-outputs // OUTPUTS) * OUTPUTS, -(-inputs // QUAD) * QUAD
    out = np.zeros((rows, padded), np.float32)
    bytes_in = np.full((rows, wide), 77, np.uint8)  # what lies in the padding must not count
    bytes_in[:, :inputs] = x
    offset = np.zeros(padded, np.int32)
    offset[:outputs] = -SHIFT * weight.sum(1, dtype=np.int32)
    scales = np.concatenate([scale, np.zeros(padded - outputs, np.float32)])
    packed = pack(weight)
    assert packed.shape == (padded // OUTPUTS, wide // QUAD, 4, 16, QUAD)
    multiply(bytes_in, row_scale, rows, packed.reshape(-1), scales, offset, wide, out)
    expected = (x.astype(np.int64) - SHIFT) @ weight.T.astype(np.int64) * row_scale[:, None].astype(np.float64) * scale
    np.testing.assert_allclose(out[:, :outputs], expected, rtol=1e-6)


def _logits(model, tokens: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor([tokens]))[0, -1].numpy()


@pytest.fixture
def short_memory(monkeypatch):
    """PyTorch sees keys and values as the compiled decoder keeps them: in BF16."""
    attend = torch.nn.functional.scaled_dot_product_attention

    def attend_to_short(q, k, v, **options):
        return attend(q, k.bfloat16().to(q.dtype), v.bfloat16().to(q.dtype), **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend_to_short)


def _rounded(x: torch.Tensor) -> torch.Tensor:
    """Each row as 8 bits would give it back."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    return torch.where(scale > 0, (x / scale).round() * scale, x)


def _round_activations(model: Decoder, monkeypatch) -> None:
    """Let every matrix of the model see rows of 8 bits; the router and the norms see what they always do."""
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, experts.Experts, experts.DenseNetwork)):
            module.register_forward_pre_hook(lambda _, inputs: (_rounded(inputs[0]), *inputs[1:]))
    gated = experts.gated
    monkeypatch.setattr(experts, "gated", lambda gate_up: _rounded(gated(gate_up)))


@pytest.mark.usefixtures("short_memory")
def test_the_runner_says_what_pytorch_says_with_weights_and_activations_of_8_bits(any_model, save, spec, tokenizer, prompts, monkeypatch):
    run_int8(made := spec("int8", save(any_model)))
    decoded, _ = load_model(made.output_folder)
    _round_activations(decoded, monkeypatch)
    sequences = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    with closing(open_runner(made.output_folder, threads=1, max_batch=8, max_seq_len=96)) as runner:
        found = runner.forward([Chunk(slot, 0, tokens) for slot, tokens in enumerate(sequences)]).copy()
        after = runner.forward([Chunk(slot, len(tokens), [9]) for slot, tokens in enumerate(sequences)]).copy()
    for tokens, first, second in zip(sequences, found, after, strict=True):
        for wanted, logits in ((_logits(decoded, tokens), first), (_logits(decoded, [*tokens, 9]), second)):
            # An activation just at the middle between two steps may fall to either side.
            assert np.abs(logits - wanted).mean() < 0.02 * wanted.std()


@pytest.mark.usefixtures("short_memory")
def test_pytorchs_int8_which_gpus_run_says_what_the_compiled_decoder_says(any_model, save, spec, tokenizer, prompts):
    run_int8(made := spec("int8", save(any_model)))
    sequences = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    given = []
    for opened in (open_runner(made.output_folder, **ROOM), open_int8_torch_runner(made.output_folder, "cpu", **ROOM)):
        with closing(opened) as runner:
            given.append(runner.forward([Chunk(slot, 0, tokens) for slot, tokens in enumerate(sequences)]).copy())
            given.append(runner.forward([Chunk(slot, len(tokens), [9]) for slot, tokens in enumerate(sequences)]).copy())
    for ours, theirs in zip(given[:2], given[2:], strict=True):
        assert np.abs(ours - theirs).mean() < 0.02 * ours.std()  # a number just at the middle between two steps may fall to either side


FAMILIES = {
    "mixtral": (Int8Runner, {"router_bias": False}),
    "gpt_oss": (TorchRunner, {
        "attention_sinks": True, "expert_bias": True, "swiglu_offset": 1.0, "swiglu_alpha": 1.702, "swiglu_limit": 7.0, "attention_bias": True,
        "attention_out_bias": True, "sliding_window": 5, "sliding_layers": (0,),
    }),
    "qwen3_moe": (TorchRunner, {"router_bias": False, "qk_norm": "head", "norm_top_k": False, "first_dense_layers": 1, "d_dense": 56}),
    "olmoe": (TorchRunner, {"router_bias": False, "qk_norm": "whole", "clip_qkv": 2.0}),
    "glm4_moe": (TorchRunner, {
        "router": "sigmoid", "qk_norm": "head", "rotary_share": 0.5, "router_groups": 2, "router_top_groups": 1, "n_shared_experts": 1,
    }),
    "deepseek_v3": (TorchRunner, {
        "router": "sigmoid", "n_kv_heads": 4, "kv_rank": 16, "q_rank": 20, "rope_head_dim": 4, "value_head_dim": 8, "n_shared_experts": 1,
    }),
    "qwen3": (TorchRunner, {"n_experts": 0, "top_k": 0, "d_expert": 0, "d_dense": 56, "qk_norm": "head"}),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_that_is_imported_answers_in_int8_nearly_as_before(family, make_model, save, spec, tokenizer, prompts):
    runs_in, features = FAMILIES[family]
    parent = make_model(**features)
    assert parent.config.family == family
    run_int8(made := spec("int8", save(parent)))
    decoded, _ = load_model(made.output_folder)
    sequences = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    with closing(open_engine(made.output_folder)) as engine:
        assert isinstance(engine._runner, runs_in)
        found = engine._runner.forward([Chunk(slot, 0, tokens) for slot, tokens in enumerate(sequences)])
        alike = [np.corrcoef(logits, _logits(decoded, tokens))[0, 1] for tokens, logits in zip(sequences, found, strict=True)]
    assert np.median(alike) > 0.99  # one that is rounded to another expert may differ more
    matrices = [name for name in load_file(made.output_folder / "model.safetensors") if name.endswith("_scale")]
    assert any("experts.3." in name for name in matrices) == parent.config.is_moe


def test_matrices_that_do_not_fit_the_configuration_never_reach_compiled_code(make_model, save, spec):
    run_int8(made := spec("int8", save(make_model())))
    path = made.output_folder / "config.json"
    described = json.loads(path.read_text())
    for name, wrong in {"d_model": 64, "vocab_size": 9999, "n_heads": 8, "n_layers": 3, "head_dim": 16, "d_expert": 48}.items():
        path.write_text(json.dumps(described | {"storage": described["storage"] | {"model": described["storage"]["model"] | {name: wrong}}}))
        with pytest.raises(UnusableModel, match="damaged"):
            open_runner(made.output_folder, **ROOM)


def test_rounding_activations_changes_little(make_model, save, spec, tokenizer, prompts):
    run_int8(made := spec("int8", save(make_model())))
    decoded, _ = load_model(made.output_folder)
    sequences = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    with closing(open_runner(made.output_folder, threads=1, max_batch=8, max_seq_len=96)) as runner:
        found = runner.forward([Chunk(slot, 0, tokens) for slot, tokens in enumerate(sequences)])
    for tokens, logits in zip(sequences, found, strict=True):
        assert np.corrcoef(logits, _logits(decoded, tokens))[0, 1] > 0.99


def test_a_row_does_not_depend_on_its_company_nor_on_how_its_prompt_is_cut(make_model, save, spec, tokenizer, prompts):
    run_int8(made := spec("int8", save(make_model())))
    sequences = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    with closing(open_runner(made.output_folder, threads=2, max_batch=8, max_seq_len=96)) as runner:
        together = runner.forward([Chunk(slot, 0, tokens) for slot, tokens in enumerate(sequences)]).copy()
        for slot, tokens in enumerate(sequences):
            runner.forward([Chunk(slot, 0, tokens[:4])])
            alone = runner.forward([Chunk(slot, 4, tokens[4:])])[0]
            np.testing.assert_array_equal(alone, together[slot])


def test_decoding_step_by_step_is_reading_all_at_once(make_model, save, spec, tokenizer, prompts):
    run_int8(made := spec("int8", save(make_model())))
    tokens = tokenizer.encode_prompt(prompts[0])
    with closing(open_runner(made.output_folder, threads=1, max_batch=2, max_seq_len=96)) as runner:
        at_once = runner.forward([Chunk(0, 0, tokens)])[0].copy()
        for position, token in enumerate(tokens):
            stepwise = runner.forward([Chunk(1, position, [token])])[0]
    np.testing.assert_array_equal(stepwise, at_once)


def test_a_model_of_the_nano_shape_takes_a_quarter_of_the_bytes(make_model, save, spec):
    model = make_model(vocab_size=2048, d_model=128, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=32, d_expert=128, n_experts=8)
    parent = save(model)
    result = run_int8(made := spec("int8", parent))
    assert weight_bytes(made.output_folder) <= 0.26 * weight_bytes(parent)
    assert result["kind"] == "int8"
    assert result["details"]["size_ratio"] == weight_bytes(made.output_folder) / weight_bytes(parent)


def test_the_engine_serves_it_without_decoding_it(make_model, save, spec, prompts):
    run_int8(made := spec("int8", save(make_model())))
    with closing(open_engine(made.output_folder)) as engine:
        assert type(engine._runner).__name__ == "Int8Runner"
        answers = engine.generate_all(prompts, max_tokens=8)
    assert all(answer.tokens >= 1 or answer.finish_reason == "stop" for answer in answers)


def test_its_embeddings_are_close_to_its_parents(make_model, save, spec):
    run_int8(made := spec("int8", save(make_model())))
    vectors = []
    for folder in (made.model_folder, made.output_folder):
        with closing(open_engine(folder)) as engine:
            ticket = engine.embed("What is thing number 3?")
            ticket.result(60)
            vectors.append(ticket.embedding)
    assert np.dot(*vectors) > 0.99


def test_damaged_weights_are_named(make_model, save, spec):
    run_int8(made := spec("int8", save(make_model())))
    weights = made.output_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UnusableModel, match="weights of child are damaged"):
        open_runner(made.output_folder, threads=1, max_batch=1, max_seq_len=96)


def test_config_json_says_what_is_stored(make_model, save, spec):
    run_int8(made := spec("int8", save(make_model())))
    assert json.loads((made.output_folder / "config.json").read_text())["storage"]["format"] == "int8"


def test_tokens_that_the_int8_decoder_chooses_alone_are_those_chosen_one_by_one(make_model, save, spec, tokenizer, prompts):
    run_int8(made := spec("int8", save(make_model())))
    sequences = [tokenizer.encode_prompt(prompt) for prompt in prompts][:8]
    with closing(open_runner(made.output_folder, threads=1, max_batch=8, max_seq_len=96)) as runner:
        first = runner.forward([Chunk(slot, 0, tokens) for slot, tokens in enumerate(sequences)]).argmax(-1).tolist()
        expected: list[list[int]] = []
        for slot, tokens in enumerate(sequences):
            said = [first[slot]]
            for ahead in range(12):
                said.append(int(runner.forward([Chunk(slot, len(tokens) + ahead, said[-1:])])[0].argmax()))
            expected.append(said[1:])
        chunks = [Chunk(slot, len(tokens), [first[slot]]) for slot, tokens in enumerate(sequences)]
        assert runner.decode(chunks, [12] * len(chunks), np.zeros(runner.vocab_size, bool)) == expected
