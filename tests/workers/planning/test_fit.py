"""The nearest configuration that fits is found by search, and keeps the examples of a step."""

from functools import partial

import numpy as np

from tests.workers.planning.test_memory import shape_of
from workers.moe import PRESETS
from workers.planning import Configuration, Kind, nearest, planned, rows_of
from workers.training.batches import pack
from workers.training.examples import Example

SHAPES = [
    shape_of(config).__class__(**{**vars(shape_of(config)), "name": name}) for name, config in PRESETS.items() if not name.startswith("moe-128b")
]
KINDS = [Kind("question", 5000, 150_000), Kind("document", 1000, 200_000)]


def rows(micro_batch: int):
    return rows_of(KINDS, micro_batch, 256)


def of(configuration: Configuration):
    shape = next(shape for shape in SHAPES if shape.name == configuration.preset)
    return planned(configuration, shape, rows(configuration.micro_batch))


def test_a_smaller_micro_batch_accumulated_longer_comes_first():
    asked = Configuration("small", "fp32", 64, 1, 1, 0)

    found = nearest(asked, SHAPES, rows, 0.75 * of(asked).bytes_in_all)

    assert found.configuration.preset == "small"
    assert found.configuration.micro_batch < 64
    assert found.configuration.step_examples == asked.step_examples
    assert found.bytes_in_all <= 0.75 * of(asked).bytes_in_all


def test_recomputing_is_offered_only_where_the_loop_can():
    asked = Configuration("small", "fp32", 31, 1, 1, 0)  # which no halving divides
    small, room = [shape for shape in SHAPES if shape.name == "small"], of(asked).bytes_in_all - 1

    assert nearest(asked, small, rows, room) is None
    assert nearest(asked, small, rows, room, may_checkpoint=True).configuration.checkpointing


def test_a_higher_stage_or_fewer_ranks_where_the_states_are_too_large():
    asked = Configuration("base", "fp32", 8, 1, 4, 0)

    found = nearest(asked, SHAPES, rows, 0.7 * of(asked).bytes_in_all)

    assert found.configuration.preset == "base"
    assert found.configuration.stage > 0 or found.configuration.expert_ranks > 1 or found.configuration.ranks < 4
    assert found.configuration.step_examples == asked.step_examples


def test_what_is_offered_can_be_started():
    """Experts spread over ranks that divide both, and only in the stages that can; whatever the room."""
    for stage, spread, ranks in ((0, 1, 6), (0, 2, 6), (1, 3, 6), (1, 2, 4), (2, 1, 4)):
        asked = Configuration("small", "fp32", 16, 1, ranks, stage, expert_ranks=spread)
        for share in (0.9, 0.7, 0.5, 0.3):
            found = nearest(asked, [shape for shape in SHAPES if shape.name == "small"], rows, share * of(asked).bytes_in_all)
            if found is not None:
                made = found.configuration
                assert made.ranks % made.expert_ranks == 0 and 8 % made.expert_ranks == 0 and (made.stage < 2 or made.expert_ranks == 1)
                assert made.step_examples == asked.step_examples and found.bytes_in_all <= share * of(asked).bytes_in_all


def test_pairs_are_two_sequences_and_pictures_are_tokens():
    plain, pairs = Configuration("nano", "fp32", 16, 1, 1, 0), Configuration("nano", "fp32", 16, 1, 1, 0, pairs=100)
    assert (plain.sequences, pairs.sequences, pairs.step_examples) == (16, 32, 16)
    words, pictured = ([Kind("question", 100, 2400.0, pictures)] for pictures in (0, 100))
    without, with_them = rows_of(words, 16, 256), rows_of(pictured, 16, 256)
    assert with_them.tokens == without.tokens + 16 * 16
    assert with_them.patch_share == 0.4 and with_them.learnt_share == without.learnt_share * 0.6


def test_another_preset_is_the_last_resort_and_nothing_is_said_where_nothing_fits():
    asked = Configuration("moe-16b-a3b", "bf16", 32, 1, 1, 0)

    assert nearest(asked, SHAPES, rows, 8e9).configuration.preset == "base"
    assert nearest(asked, SHAPES, rows, 1e6) is None


def test_no_configuration_that_fits_changes_less_than_the_one_found():
    """Against all micro-batches one by one: the largest that fits is taken."""
    asked = Configuration("nano", "fp32", 256, 1, 1, 0)
    room = 0.6 * of(asked).bytes_in_all
    fitting = [m for m in (128, 64, 32, 16, 8, 4, 2, 1) if of(Configuration("nano", "fp32", m, 256 // m, 1, 0)).bytes_in_all <= room]

    assert nearest(asked, SHAPES, rows, room).configuration.micro_batch == max(fitting)


def test_rows_are_those_that_packing_makes():
    generator = np.random.default_rng(0)
    lengths = generator.integers(10, 50, 32 * 200)
    examples = [Example(np.arange(n), np.arange(n) >= n // 2, "", 1.0) for n in lengths]
    planned_rows = partial(rows_of, [Kind("question", len(lengths), float(lengths.sum()))], max_length=256)
    packed = [pack(examples[start : start + 32]).tokens.numel() for start in range(0, len(examples), 32)]

    found = planned_rows(micro_batch=32)

    assert max(packed) <= found.rows * found.length <= 1.8 * np.mean(packed)
