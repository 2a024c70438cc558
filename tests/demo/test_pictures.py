"""`python -m demo.pictures`: what it draws, and that its held-out pictures were not taught."""

import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from demo.pictures import COLOURS, NUMBERS, SHAPES, draw, records
from workers.moe import pixels_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made() -> list[dict]:
    return list(records(400, seed=1))


def test_the_same_seed_gives_the_same_file(tmp_path, made):
    subprocess.run([sys.executable, "-m", "demo.pictures", tmp_path / "out.jsonl", "--pictures", "400", "--seed", "1"], cwd=ROOT, check=True)
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == made
    assert list(records(3, seed=2)) != made[:9]


def test_what_is_held_out_is_taught_in_parts_only():
    """Read back from the answers, not from what drew them."""
    words = {c: c for c in COLOURS} | {zh: c for c, (zh, _) in COLOURS.items()}
    words |= {s: s for s in SHAPES} | {zh: s for s, zh in SHAPES.items()}
    words |= {word: str(n) for n, names in NUMBERS.items() for word in names}
    shown: dict[str, set[tuple[str, ...]]] = {"train": set(), "eval": set()}
    rows = list(records(1500, seed=3, size=16))
    for start in range(0, len(rows), 3):
        said = [re.split(r"[ .。]|图中是|颜色是|一共有|个", row["answer"]) for row in rows[start : start + 3]]
        shown[rows[start]["split"]].add(tuple(next(words[w] for w in answer if w in words and w != "a") for answer in said))
    assert len(shown["eval"]) == len(COLOURS) * len(SHAPES) * len(NUMBERS) // 6
    assert not shown["eval"] & shown["train"]
    for part in ((0, 1), (0, 2), (1, 2)):  # each pair of what is held out is taught, in another company
        assert {(t[part[0]], t[part[1]]) for t in shown["eval"]} <= {(t[part[0]], t[part[1]]) for t in shown["train"]}


def test_each_picture_is_asked_about_in_all_kinds_and_both_languages(made):
    assert Counter(r["domain"] for r in made) == {"shape": 400, "colour": 400, "count": 400}
    assert min(Counter((r["domain"], r["lang"]) for r in made).values()) > 100


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_things_are_as_many_as_said_and_lie_apart(count):
    """Counted anew, by joining neighbouring pixels of the colour."""
    for seed in range(8):
        pixels = np.asarray(draw("circle", (220, 40, 40), count, random.Random(seed), 64)).astype(int)
        red = (pixels[..., 0] - pixels[..., 1]) > 90
        parts = 0
        while red.any():
            parts += 1
            waiting = [tuple(np.argwhere(red)[0])]
            while waiting:
                y, x = waiting.pop()
                if 0 <= y < 64 and 0 <= x < 64 and red[y, x]:
                    red[y, x] = False
                    waiting += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        assert parts == count


def test_the_pictures_are_of_the_size_that_a_model_sees_them_in(made):
    assert pixels_of(made[0]["image"], 32).shape == (32, 32, 3)
    assert len(made[0]["image"]) < 4000
