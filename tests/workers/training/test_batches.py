import numpy as np
import pytest
import torch
import torch.nn.functional as F

from workers.moe import PRESETS, Decoder
from workers.training.batches import MOST_TURNS, NO_TARGET, Sampler, as_conversations, pack, sampling_weights
from workers.training.examples import Example


def example(length: int, seed: int, learnt_from: int = 1) -> Example:
    ids = np.random.default_rng(seed).integers(6, 300, length).astype(np.int32)
    return Example(ids, np.arange(length) >= learnt_from, "law", 1.0)


def test_a_packed_batch_gives_the_loss_and_gradients_of_each_example_alone():
    examples = [example(n, seed=n, learnt_from=n // 2) for n in (9, 30, 41, 5, 70, 12)]
    torch.manual_seed(0)
    model = Decoder(PRESETS["nano"].with_(vocab_size=300, d_model=32, n_layers=2, d_expert=16, n_experts=4))
    model.initialise(torch.Generator().manual_seed(0))

    batch = pack(examples)
    logits = model(batch.tokens, positions=batch.positions, mask=batch.mask, valid=batch.valid, select=batch.select)
    packed = F.cross_entropy(logits, batch.targets)
    packed_gradients = torch.autograd.grad(packed, list(model.parameters()))

    total = torch.zeros(())
    for e in examples:
        ids = torch.from_numpy(e.ids).long()[None]
        targets = torch.where(torch.from_numpy(e.learnt)[1:], ids[0, 1:], NO_TARGET)
        total = total + F.cross_entropy(model(ids)[0, :-1], targets, reduction="sum")
    alone = total / sum(e.learnt_count for e in examples)
    torch.testing.assert_close(packed, alone)
    for ours, theirs in zip(packed_gradients, torch.autograd.grad(alone, list(model.parameters())), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_a_batch_counts_its_tokens_and_pads_to_few_shapes():
    batch = pack([example(n, seed=n) for n in (9, 101, 5)])
    assert (batch.token_count, batch.learnt_count) == (115, 112)
    assert batch.tokens.shape == (2, 112) and batch.select.shape == (128,)
    assert (batch.targets == NO_TARGET).sum() == 128 - 112


@pytest.mark.parametrize("taken", [0, 3, 17, 40])
def test_a_sampler_put_back_to_a_position_goes_on_with_the_same_examples(taken):
    weights = np.array([1.0] * 10 + [0.5] * 5)
    whole = Sampler(weights, seed=3).take(60)
    first = Sampler(weights, seed=3)
    first.take(taken)
    again = Sampler(weights, seed=3)
    again.position = first.position
    assert again.take(60 - taken) == whole[taken:]
    assert Sampler(weights, seed=4).take(60) != whole


def test_examples_come_as_often_as_their_weights_say():
    examples = [example(5, 0), Example(example(5, 1).ids, example(5, 1).learnt, "art", 0.5), example(5, 2)]
    weights = sampling_weights(examples, {"art": 0.5, "law": 2.0})
    assert weights.tolist() == [2.0, 0.25, 2.0]
    counts = np.bincount(Sampler(weights, seed=0).take(4250), minlength=3)
    np.testing.assert_allclose(counts, [2000, 250, 2000], atol=40)


def test_questions_are_joined_into_short_conversations_and_documents_are_not():
    questions = [example(10, seed=n, learnt_from=4) for n in range(40)]
    document = Example(np.arange(6, 16, dtype=np.int32), np.ones(10, bool), "law", 1.0, is_question=False)

    joined = as_conversations([*questions, document], 0.5, np.random.default_rng(0), max_length=200)

    assert len(joined) < 35 and joined[-1] is document
    assert {len(e) // 10 for e in joined} <= set(range(1, MOST_TURNS + 1))
    assert np.concatenate([e.ids for e in joined]).tolist() == np.concatenate([e.ids for e in [*questions, document]]).tolist()
    assert sum(e.learnt_count for e in joined) == sum(e.learnt_count for e in [*questions, document])


def test_no_conversation_is_longer_than_a_model_reads_and_none_is_made_where_none_is_asked_for():
    questions = [example(10, seed=n) for n in range(20)]

    assert max(len(e) for e in as_conversations(questions, 0.99, np.random.default_rng(0), max_length=25)) == 20
    assert as_conversations(questions, 0.0, np.random.default_rng(0), max_length=200) == questions
