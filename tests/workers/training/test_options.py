"""What a spec may ask for beside the plain step: averaged weights, recomputed activations; and what is told."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from workers.moe import Decoder, ModelConfig
from workers.training.batches import pack
from workers.training.examples import Example
from workers.training.flops import Flops
from workers.training.loop import Loop
from workers.training.prepare import prepare
from workers.training.ranks import Ranks

ALONE = Ranks(0, 1, 1, torch.device("cpu"))


def loop_of(spec) -> Loop:
    return Loop(spec, ALONE, prepare(spec, ALONE))


def test_the_average_is_what_the_formula_gives_and_what_is_published(make_spec, capsys):
    loop = loop_of(make_spec(steps=12, ema_decay=0.7))
    expected = {n: p.detach().clone() for n, p in loop.model.named_parameters()}
    step = loop.step

    def followed():
        taken = loop.progress.step
        outcome = step()
        decay = min(0.7, (1 + taken) / (10 + taken))
        for name, p in loop.model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach()
        return outcome

    loop.step = followed
    with loop.average.in_place():
        pass  # changes nothing
    loop.run()
    for name, parameter in loop.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], atol=1e-6, rtol=1e-5)


def saved_for_backward(spec) -> tuple[int, list[torch.Tensor]]:
    """Bytes that autograd keeps of one forward, and the gradients."""
    loop = loop_of(spec)
    kept: dict[int, int] = {}
    gradients: list[torch.Tensor] = []
    losses = loop.losses

    def counted(stage, batch):
        def keep(tensor):
            if not isinstance(tensor, torch.nn.Parameter):
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            return losses(stage, batch)

    def no_step(optimizer, model, clip_norm):
        gradients.extend(p.grad.clone() for p in model.parameters())
        return 1.0, True

    loop.losses, loop.precision.step = counted, no_step
    loop.step()
    return sum(kept.values()), gradients


def test_recomputed_activations_give_the_same_gradients_and_take_less_memory(make_spec, tiny):
    spec = {"model": {**tiny, "n_layers": 4}, "micro_batch": 32, "router": "softmax"}
    plain_bytes, plain = saved_for_backward(make_spec("plain", **spec))
    bytes_kept, gradients = saved_for_backward(make_spec("recomputed", activation_checkpointing=True, **spec))
    assert bytes_kept < 0.5 * plain_bytes
    for ours, theirs in zip(gradients, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_the_flops_of_a_step_are_those_that_pytorch_counts(tiny):
    from torch.utils.flop_counter import FlopCounterMode

    model = Decoder(ModelConfig.from_dict({**tiny, "top_k": 2, "max_seq_len": 96})).train()
    model.initialise(torch.Generator().manual_seed(0))
    one = Example(np.arange(96, dtype=np.int32), np.arange(96) > 0, "", 1.0)  # as long as a row, so that no padding is multiplied
    batch = pack([one, one])
    with FlopCounterMode(display=False) as counter:
        logits = model(batch.tokens, positions=batch.positions, mask=batch.mask, valid=batch.valid, select=batch.select)
        F.cross_entropy(logits, batch.targets).backward()

    masked_half = 6 * 2 * 2 * 8 * 2 * 96**2  # which is multiplied all the same
    assert Flops(model).of(192, 190, 2) + masked_half == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_steps_tell_of_utilisation_memory_and_evaluation(make_spec, capsys):
    loop = loop_of(make_spec(steps=12, micro_batch=8, evaluate_every_seconds=1e-3, ema_decay=0.5))
    own = [p.detach().clone() for p in loop.model.parameters()]
    with loop.average.in_place():
        loop.teller.evaluate(loop.model, 0)
    assert all(a.equal(b) for a, b in zip(own, loop.model.parameters(), strict=True))
    loop.teller._next_evaluation = 0.0
    loop.run()
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    steps = [e for e in events if e["event"] == "step"]
    for event in steps:
        assert 0 < event["mfu"] < 1 and event["micro_batch"] == 8
        assert 0 < event["memory_bytes"] <= event["peak_memory_bytes"]
    first, again, *_ = [e for e in events if e["event"] == "evaluation"]
    assert (again["questions"], again["answered"]) == (1, 1) and 0 <= again["bleu"] <= 100
    assert first["loss"] == pytest.approx(np.log(loop.model.config.vocab_size), rel=0.1) and again["loss"] < first["loss"]
