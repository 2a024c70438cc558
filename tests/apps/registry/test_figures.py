"""What compressions were asked for and measured is told in words, with units."""

import pytest
from django.utils import translation

from apps.registry.figures import figures_told
from workers.compression.applicable import OPTIONS


def test_figures_have_their_units():
    found = {"bytes_after": 1_660_576, "size_ratio": 0.2589, "seconds": 150.2, "alpha": 0.5, "kernel": "AVX-512 VNNI", "steps": 8500}
    assert figures_told(found) == [
        ("Size after", "1.7 MB"), ("Size, share of the parent's", "25.9 %"), ("Time of learning", "2 min 30 s"),
        ("Weight of the teacher's answers in the loss", "50 %"), ("Instructions of the processor", "AVX-512 VNNI"), ("Steps of learning", "8,500"),
    ]  # fmt: skip


def test_what_is_measured_at_several_batches_is_one_line_and_what_is_drawn_is_none():
    found = {"speed_ratio": {"batch_1": 2.9, "batch_8": 2.257, "batch_32": 123.4}, "curve": [1, 2], "loss": {"a": 1}}
    assert figures_told(found) == [("Decoding, times the parent's speed, 1 / 8 / 32 at once", "2.90 / 2.26 / 123")]


def test_a_figure_of_another_release_is_told_by_its_name():
    assert figures_told({"some_new_figure": 3}) == [("Some new figure", "3")]


@pytest.mark.parametrize("option", sorted({name for names in OPTIONS.values() for name in names}))
def test_every_option_is_told_in_chinese_too(option):
    with translation.override("zh-hans"):
        (told,) = figures_told({option: 0.5})
    assert not told[0].isascii(), told
