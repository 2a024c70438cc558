"""Experts drawn apart by domain while the model trains."""

import numpy as np
import pytest
import torch

from tests.workers.training.test_loop import gradients, loop_of
from workers.moe.config import ModelConfig
from workers.moe.router import Router
from workers.training import domain_routing
from workers.training.batches import as_conversations, pack
from workers.training.domain_routing import DomainRouting, gains, token_domains
from workers.training.examples import Example
from workers.training.specialisation import mutual_information
from workers.training.state import Progress


def example(length: int, domain: str) -> Example:
    return Example(np.arange(length, dtype=np.int32), np.arange(length) > 0, domain, 1.0)


def test_the_tokens_of_packed_rows_carry_the_domain_of_their_own_turn():
    examples = [example(30, "law"), example(7, "music"), example(60, ""), example(12, "law"), example(9, "music"), example(11, "unknown")]
    joined = as_conversations(examples, 0.99, np.random.default_rng(3), 64)
    assert len(joined) < len(examples)  # some turns of several domains share an example
    batch = pack(joined)
    domain = token_domains(batch, joined, {"law": 0, "music": 1})
    assert (domain[~batch.valid] == 2).all()
    for index, one in enumerate(joined):
        expected = [{"law": 0, "music": 1}.get(name, 2) for name, length in one.domains for _ in range(length)]
        assert domain[batch.example == index].tolist() == expected


def test_gains_are_the_gradient_of_the_information_and_of_the_evenness_of_the_load(monkeypatch):
    monkeypatch.setattr(domain_routing, "PRIOR", 1e-9)
    counts = torch.rand(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 20
    joint = (counts / counts.sum()).requires_grad_()
    load = joint.sum(0)
    information = (joint * (joint / (joint.sum(1, keepdim=True) * load)).log()).sum()
    (information - (load * load.log()).sum()).backward()
    difference = joint.grad - gains(counts)  # a constant, which has no effect on probabilities that sum to one
    torch.testing.assert_close(difference, difference[0, 0].expand_as(difference))


def test_a_pair_that_few_tokens_could_have_met_says_little():
    found = gains(torch.tensor([[500.0, 2.0], [500.0, 0.0], [0.0, 0.0]], dtype=torch.float64))
    assert abs(found[0, 1] - found[1, 1]) < 0.3
    assert found[0, 1] > found[0, 0] + 1  # but an idle expert is always worth going to
    assert torch.isfinite(found).all()


def test_accumulated_gradients_of_the_domain_loss_equal_those_of_the_large_batch(make_spec, monkeypatch):
    def after_a_step(name: str, **changes) -> list[torch.Tensor]:
        loop = loop_of(make_spec(name, aux_loss=0.0, z_loss=0.0, conversations=0.0, domain_routing=1.0, **changes))
        loop.progress.domain_counts = torch.rand(2, 3, 32, generator=torch.Generator().manual_seed(0)).tolist()
        return gradients(loop, monkeypatch)

    for ours, theirs in zip(after_a_step("small", accum_steps=4), after_a_step("large", micro_batch=8), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_domains_come_to_prefer_experts_of_their_own_while_the_load_stays_even(kind):
    """A router alone, on tokens whose domain can be seen in their values, as it can in a trained model's hidden states."""
    generator = torch.Generator().manual_seed(0)
    names, width = [f"domain {n}" for n in range(12)], 32
    signal = torch.randn(len(names), width, generator=generator)
    config = ModelConfig(8, width, 1, 2, 1, 4, d_expert=4, n_experts=8, top_k=2, router=kind)

    def run(weight: float) -> tuple[float, float]:
        router, progress = Router(config), Progress()
        torch.nn.init.normal_(router.weight, std=0.02, generator=torch.Generator().manual_seed(1))
        examples = [example(16, name) for name in names]
        routing = DomainRouting(weight, examples, [router])
        batch = routing.mark(pack(examples), examples)
        optimizer = torch.optim.AdamW(router.parameters(), lr=5e-3)
        loads = []
        for _ in range(150):
            x = torch.randn(batch.tokens.numel(), width, generator=generator)
            x[batch.valid.reshape(-1)] += signal[batch.domain.reshape(-1)[batch.valid.reshape(-1)]]
            router(x, batch.valid.reshape(-1))
            (0.01 * router.aux_loss + weight * routing.loss(batch, progress)).backward()
            optimizer.step()
            optimizer.zero_grad()
            routing.remember(progress, routing.count(batch))
            loads.append(router.load)
            if router.sigmoid:
                router.move_bias(router.load, 1e-3)
        load = torch.stack(loads[-50:]).sum(0).double()
        return float(mutual_information(np.array(progress.domain_counts[0]))), float(load.max() / load.mean())

    plain, _ = run(1e-9)  # so light that it counts and does not press
    apart, fullest = run(0.05)
    assert apart > plain + 0.3
    assert fullest < 1.5


def test_a_resumed_run_goes_on_bit_for_bit(make_spec, capsys):
    whole = loop_of(make_spec("whole", steps=8, domain_routing=0.1))
    expected = whole.run()
    first = loop_of(make_spec("parts", steps=8, domain_routing=0.1))
    for _ in range(4):
        first.step()
    first._save()
    again = loop_of(make_spec("parts", steps=8, domain_routing=0.1))
    progress = again.run()
    assert progress.step == 8 and "Resumed from step 4" in capsys.readouterr().out
    assert progress.domain_counts == expected.domain_counts
    assert all(a.equal(b) for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True))


def test_two_ranks_follow_one(make_spec, run_child):
    job = {"steps": 8, "lr": 2e-3, "optimizer": "adamw", "schedule": "constant", "aux_loss": 0.0, "z_loss": 0.0, "domain_routing": 0.5}
    alone = run_child(make_spec("alone", accum_steps=4, **job))
    ranks = run_child(make_spec("ranks", accum_steps=2, world_size=2, zero_stage=2, threads=2, **job))
    assert ranks.losses == pytest.approx(alone.losses, rel=1e-5)
    assert ranks.result["expert_load"] == alone.result["expert_load"]


def test_a_dataset_of_one_domain_is_told_that_the_option_does_nothing(make_spec, write_lines, dataset):
    write_lines(dataset / "train.jsonl", [{"question": "What is gold?", "answer": "gold is a metal.", "domain": "chemistry"}])
    loop = loop_of(make_spec(domain_routing=0.1))
    assert "several domains" in loop.domain_routing.note
    loop.step()
    assert loop.progress.domain_counts == []
