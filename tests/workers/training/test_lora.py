"""Low-rank adapters: what is learnt, what is merged, and that a run of them is a run like any other."""

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from workers.moe import load_model
from workers.training.finish import finish
from workers.training.loop import Loop
from workers.training.lora import adapters, merged
from workers.training.prepare import prepare
from workers.training.ranks import Ranks
from workers.training.telling import gather

ALONE = Ranks(0, 1, 1, torch.device("cpu"))
LORA = {"rank": 2, "alpha": 6.0}


@pytest.fixture
def adapted_spec(make_spec, parent):
    def make(name: str = "run", lora: dict | None = None, **changes):
        return make_spec(name, preset="nano", model=None, parent_folder=parent, lora=LORA | (lora or {}), **changes)

    return make


def loop_of(spec) -> Loop:
    return Loop(spec, ALONE, prepare(spec, ALONE))


def test_the_merged_weights_are_those_of_the_formula(adapted_spec, parent):
    loop = loop_of(adapted_spec())
    before, _ = load_model(parent)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for adapter in adapters(loop.model).values():
            adapter.lora_B.normal_(0, 0.3, generator=generator)
    tokens = torch.randint(0, 100, (2, 12), generator=generator)
    plain = gather(loop.model, ALONE)

    weights, changed = dict(before.named_parameters()), dict(plain.named_parameters())
    pairs = {name: (adapter.lora_A, adapter.lora_B) for name, adapter in adapters(loop.model).items()}
    assert {n.split(".", 2)[-1] for n in pairs} == {
        "attention.qkv.weight", "attention.out.weight", "feed_forward.experts.gate_up", "feed_forward.experts.down",
    }  # fmt: skip
    for name, parameter in changed.items():
        expected = weights[name].clone()
        if name in pairs and "experts" in name:  # x @ W: an expert's matrix is (inputs, outputs)
            for expert in range(32):
                a, b = pairs[name][0][expert], pairs[name][1][expert]  # (rank, inputs), (outputs, rank)
                expected[expert] += 6.0 / 2 * (b @ a).T
        elif name in pairs:
            expected += 6.0 / 2 * pairs[name][1] @ pairs[name][0]
        torch.testing.assert_close(parameter, expected)
    assert not torch.equal(changed["blocks.0.feed_forward.experts.down"], weights["blocks.0.feed_forward.experts.down"])
    torch.testing.assert_close(loop.model.eval()(tokens), plain(tokens))


def test_training_begins_at_the_parent(adapted_spec, parent):
    loop = loop_of(adapted_spec())
    before, _ = load_model(parent)
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(loop.model.eval()(tokens), before(tokens), atol=0, rtol=0)


@pytest.mark.parametrize("train_router", [False, True])
def test_only_adapters_learn_and_only_they_have_optimizer_state(adapted_spec, train_router):
    loop = loop_of(adapted_spec(lora={"train_router": train_router}))
    before = {n: p.detach().clone() for n, p in loop.model.named_parameters()}
    for _ in range(3):
        loop.step()

    moved = {n for n, p in loop.model.named_parameters() if not torch.equal(p, before[n])}
    learnt = {n for n in before if "lora_" in n or (train_router and ".router." in n)}
    assert moved == learnt == {n for n, p in loop.model.named_parameters() if p.requires_grad}
    held = sum(t.numel() for state in loop.optimizer.state.values() for t in state.values() if t.dim())
    assert held <= 2 * sum(before[n].numel() for n in learnt)  # at most two moments each
    assert held < 0.5 * sum(p.numel() for p in before.values())


def test_a_resumed_run_is_the_same_run(adapted_spec):
    whole = loop_of(adapted_spec("whole", steps=6))
    whole.run()
    spec = adapted_spec("resumed", steps=6)
    first = loop_of(spec)
    for _ in range(3):
        first._between_steps(first.step())
    first._save()

    second = loop_of(spec)
    assert second.run().step == 6

    ours, theirs = second.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_sharded_ranks_learn_what_one_learns(adapted_spec, run_child, parent):
    job = {"steps": 5, "optimizer": "adamw", "lr": 2e-3, "schedule": "constant"}
    alone, ranks = adapted_spec("alone", accum_steps=2, **job), adapted_spec("ranks", world_size=2, zero_stage=3, threads=2, **job)
    expected = loop_of(alone)
    expected.run()

    child = run_child(ranks)

    assert child.result["steps"] == 5
    ours, theirs = load_model(ranks.output_folder)[0].state_dict(), merged(expected.model, expected.model.state_dict())
    before = load_model(parent)[0].state_dict()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-5, rtol=1e-3)
        assert torch.equal(tensor, before[name]) == ("qkv" not in name and "attention.out" not in name and "experts" not in name)


def test_the_adapter_beside_the_merged_model_is_one_that_peft_puts_onto_the_parent(adapted_spec, parent):
    spec = adapted_spec(steps=4)
    prepared = prepare(spec, ALONE)
    finish(spec, ALONE, prepared, Loop(spec, ALONE, prepared).run())
    base = AutoModelForCausalLM.from_pretrained(parent)
    tokens = torch.arange(24)[None]
    with torch.no_grad():
        before = base(tokens).logits

        theirs = PeftModel.from_pretrained(base, spec.output_folder / "adapter").eval()(tokens).logits

        expected = load_model(spec.output_folder)[0](tokens)
    size = expected.abs().max()
    assert (theirs - expected).abs().max() <= 1e-4 * size
    assert (theirs - before).abs().max() > 0.01 * size
    assert "PeftModel.from_pretrained" in (spec.output_folder / "README.md").read_text()


def test_where_routers_learnt_too_no_adapter_is_offered_and_the_card_says_so(adapted_spec):
    spec = adapted_spec(steps=1, lora={"train_router": True})
    prepared = prepare(spec, ALONE)
    finish(spec, ALONE, prepared, Loop(spec, ALONE, prepared).run())
    assert not (spec.output_folder / "adapter").exists()
    assert "no adapter alone gives it" in (spec.output_folder / "README.md").read_text()


def test_adapters_need_a_parent(make_spec):
    with pytest.raises(ValidationError, match="give a parent_folder"):
        make_spec(lora=LORA)
