"""Pictures with questions about them, as a dataset: what shape, what colour, how many.

    python -m demo.pictures OUT.jsonl [--pictures 3000] [--seed 0] [--size 32]

Each picture shows one to four equal things, a shape in a colour, at random places and sizes on a dark or light ground. It is asked
about three times, once in each kind (`domain`: shape, colour, count), in English or in Chinese, with an answer of one sentence.
A sixth of all combinations (three blue rings, …) is in held-out pictures only (`split`: eval), so that the right answer there comes
from seeing, not from having seen the same. The same seed gives the same file.
"""

import argparse
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from workers.moe import as_data_url

COLOURS = {
    "red": ("红色", (220, 40, 40)), "green": ("绿色", (40, 170, 60)), "blue": ("蓝色", (50, 90, 230)), "yellow": ("黄色", (240, 210, 50)),
    "purple": ("紫色", (150, 60, 190)), "orange": ("橙色", (245, 140, 30)),
}  # fmt: skip
SHAPES = {"circle": "圆形", "square": "正方形", "triangle": "三角形", "cross": "十字", "ring": "圆环", "bar": "横条"}
NUMBERS = {1: ("one", "一"), 2: ("two", "两"), 3: ("three", "三"), 4: ("four", "四")}
GROUNDS = ((20, 20, 28), (238, 238, 232))
HELD_OUT_IN = 6  # one combination in so many
SCALE = 4  # drawn so many times as large, then made smaller, for smooth edges

QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "shape": {
        "en": ("What shape is shown?", "Which shape do you see?", "What is drawn in the picture?"), "zh": ("图中是什么形状？", "画的是什么？"),
    },
    "colour": {"en": ("What colour is it?", "Which colour do you see?", "What colour is the shape?"), "zh": ("它是什么颜色？", "图中的形状是什么颜色？")},
    "count": {"en": ("How many shapes are there?", "How many do you see?", "Count the shapes."), "zh": ("图中有几个形状？", "一共有几个？")},
}  # fmt: skip


def records(pictures: int, seed: int, size: int = 32) -> Iterator[dict[str, Any]]:
    """Three question records for each of so many pictures."""
    rng = random.Random(seed)
    for number in range(pictures):
        colour, shape, count = rng.choice(list(COLOURS)), rng.choice(list(SHAPES)), rng.randint(1, len(NUMBERS))
        image = as_data_url(draw(shape, COLOURS[colour][1], count, rng, size))
        for kind in QUESTIONS:
            lang = rng.choice(("en", "zh"))
            yield {
                "id": f"p{number}-{kind}", "question": rng.choice(QUESTIONS[kind][lang]), "answer": answer(kind, lang, colour, shape, count), "image": image,
                "domain": kind, "lang": lang, "split": "eval" if is_held_out(colour, shape, count) else "train",
            }  # fmt: skip


def is_held_out(colour: str, shape: str, count: int) -> bool:
    """No pair of a colour and a shape is held out whole: a model that only excludes what it has not seen would be misled."""
    return (list(COLOURS).index(colour) + list(SHAPES).index(shape) + count) % HELD_OUT_IN == 0


def answer(kind: str, lang: str, colour: str, shape: str, count: int) -> str:
    english = lang == "en"
    if kind == "shape":
        return f"The shape is a {shape}." if english else f"图中是{SHAPES[shape]}。"
    if kind == "colour":
        return f"The colour is {colour}." if english else f"颜色是{COLOURS[colour][0]}。"
    said = NUMBERS[count]
    return (f"There is {said[0]} shape." if count == 1 else f"There are {said[0]} shapes.") if english else f"一共有{said[1]}个。"


def draw(shape: str, colour: tuple[int, int, int], count: int, rng: random.Random, size: int) -> Image.Image:
    """`count` equal shapes that do not touch, on a plain ground."""
    large = size * SCALE
    picture = Image.new("RGB", (large, large), rng.choice(GROUNDS))
    pen = ImageDraw.Draw(picture)
    tint = tuple(max(0, min(255, c + rng.randint(-18, 18))) for c in colour)
    for x, y, radius in _places(count, rng, large):
        _SHAPES[shape](pen, x, y, radius, tint)
    return picture.resize((size, size), Image.Resampling.LANCZOS)


def _places(count: int, rng: random.Random, large: int) -> list[tuple[float, float, float]]:
    """Centres and radii of circles that lie apart, inside the picture."""
    radius = large * rng.uniform(0.13, 0.19 if count > 2 else 0.22)
    while True:
        found: list[tuple[float, float, float]] = []
        for _ in range(60):
            x, y = (rng.uniform(radius * 1.1, large - radius * 1.1) for _ in "xy")
            if all(math.hypot(x - a, y - b) > 2.15 * radius for a, b, _ in found):
                found.append((x, y, radius))
            if len(found) == count:
                return found
        radius *= 0.95  # no room: a little smaller


Draw = Callable[[ImageDraw.ImageDraw, float, float, float, tuple[int, ...]], None]


def _circle(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: tuple[int, ...]) -> None:
    pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _square(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: tuple[int, ...]) -> None:
    pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=fill)


def _triangle(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: tuple[int, ...]) -> None:
    pen.polygon([(x, y - r), (x - 0.95 * r, y + 0.8 * r), (x + 0.95 * r, y + 0.8 * r)], fill=fill)


def _cross(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: tuple[int, ...]) -> None:
    pen.rectangle((x - r, y - 0.28 * r, x + r, y + 0.28 * r), fill=fill)
    pen.rectangle((x - 0.28 * r, y - r, x + 0.28 * r, y + r), fill=fill)


def _ring(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: tuple[int, ...]) -> None:
    pen.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=max(1, round(0.38 * r)))


def _bar(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: tuple[int, ...]) -> None:
    pen.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), fill=fill)


_SHAPES: dict[str, Draw] = {"circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross, "ring": _ring, "bar": _bar}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    given = parser.parse_args()
    with given.out.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records(given.pictures, given.seed, given.size))


if __name__ == "__main__":
    main()
