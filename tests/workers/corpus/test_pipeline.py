"""The run as the portal starts it: `python -m workers.corpus SPEC.json`."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from workers.corpus.advancing import ROWS_BETWEEN
from workers.corpus.folder import SCHEMA
from workers.corpus.pipeline import process
from workers.corpus.records import STAGES
from workers.corpus.spec import ProcessSpec
from workers.moe import as_data_url

ENTRIES = [
    ("Gold", "Gold is a metal that does not rust.", "chemistry"),
    ("Iron", "Iron is a metal that rusts in damp air.", "chemistry"),
    ("Heart", "The heart is the organ that pumps blood through the body.", "medicine"),
    ("Kidney", "The kidney is the organ that cleans the blood of the body.", "medicine"),
    ("Novel", "A novel is a long story that is printed as a book.", "literature"),
    ("Haiku", "A haiku is a short poem that has three lines.", "literature"),
]
ROWS = [
    *({"title": t, "text": s, "domain": d, "lang": "en", "id": t} for t, s, d in ENTRIES),
    {"text": "The river rises in the mountains and reaches the sea after many slow turns between fields and villages.", "id": "river"},
    {"text": "the river rises in the mountains and reaches the sea, after many slow turns between fields and villages", "id": "copy"},
    {"text": "Buy now! Free shipping on every order, click here.", "id": "shop"},
    {"text": "ok"},
    {"question": "Who sings in the morning?", "answer": "Birds sing in the morning.", "split": "eval"},
    {"question": "who sings in the morning", "answer": "Birds.", "split": "train"},
    {"claim": "Gold is a liquid.", "label": False},
    {"question": "What is tin?", "answer": "Tin is a soft metal.", "rating": 5},
    {"question": "What is lead?", "answer": "No idea.", "rating": 1},
    {"foo": 1},
]


def spec(tmp_path: Path, *files: Path, seed: int = 0) -> ProcessSpec:
    return ProcessSpec(version=1, inputs=list(files), output_folder=tmp_path / "out", work_folder=tmp_path / "work", seed=seed)


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + "{broken\n", encoding="utf-8")
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(spec: ProcessSpec, path: Path) -> tuple[subprocess.CompletedProcess, list[dict]]:
    path.write_text(spec.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "workers.corpus", str(path)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    return done, [json.loads(line) for line in done.stdout.splitlines()]


def test_a_run_writes_the_folder_and_speaks_the_protocol(tmp_path):
    done, events = run(spec(tmp_path, jsonl(tmp_path / "in.jsonl", ROWS)), tmp_path / "spec.json")

    assert done.returncode == 0, done.stderr
    assert [e["event"] for e in events[:-1]] == ["progress"] * (len(events) - 1)
    assert events[-1]["event"] == "done"
    assert [stage["stage"] for stage in events[-1]["result"]["funnel"]] == list(STAGES)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "eval.jsonl", "preferences.jsonl", "records.parquet", "report.json", "train.jsonl",
    ]  # fmt: skip


def test_a_long_step_says_how_far_it_is(tmp_path):
    rows = [{"text": f"Village number {n} lies on the river and has {n + 2} mills."} for n in range(2 * ROWS_BETWEEN + 1)]

    _, events = run(spec(tmp_path, jsonl(tmp_path / "in.jsonl", rows)), tmp_path / "spec.json")

    cleaning = [e["progress"] for e in events if "Cleaning" in e.get("message", "")]
    assert len(cleaning) == 3
    assert cleaning == sorted(set(cleaning))
    assert [e["progress"] for e in events[:-1]] == sorted(e["progress"] for e in events[:-1])


def test_a_file_that_cannot_be_read_ends_the_run_with_one_clear_line(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.touch()

    done, events = run(spec(tmp_path, empty), tmp_path / "spec.json")

    assert done.returncode == 1
    assert events[-1]["event"] == "error"
    assert "empty.jsonl is empty" in events[-1]["message"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("mixed")
    return process(spec(folder, jsonl(folder / "in.jsonl", ROWS)), lambda share, message: None), folder / "out"


def test_every_row_is_in_the_records_with_the_stage_and_reason_that_dropped_it(mixed):
    report, out = mixed
    table = pq.read_table(out / "records.parquet")
    rows = table.to_pylist()

    assert table.schema.equals(SCHEMA)
    assert [row["row"] for row in rows] == list(range(len(rows)))
    assert report["reasons"] == Counter(row["reason"] for row in rows if row["reason"])
    assert all((row["stage"] == "used") == (row["reason"] is None) for row in rows)
    assert {row["id"]: row["reason"] for row in rows if row["id"] in ("river", "copy", "shop")} == {
        "river": None,
        "copy": "exact_duplicate",
        "shop": "advertisement",
    }
    assert report["reasons"] | {"missing_fields": 1, "unreadable": 1, "low_rating": 1, "too_short": 1} == report["reasons"]


def test_the_funnel_counts_what_each_stage_left(mixed):
    report, out = mixed
    rows = pq.read_table(out / "records.parquet").to_pylist()
    left = {stage["stage"]: stage["rows"] for stage in report["funnel"]}

    assert left["raw"] == len(ROWS) + 1
    assert left["raw"] >= left["cleaned"] >= left["deduplicated"] == left["classified"] < left["augmented"] < left["negatives"]
    assert left["used"] == sum(row["stage"] == "used" for row in rows)
    assert left["deduplicated"] == left["raw"] - sum(row["stage"] in ("raw", "cleaned", "deduplicated") for row in rows)


def test_what_is_asked_in_the_evaluation_was_never_trained_on(mixed):
    _, out = mixed
    train, held_out = lines(out / "train.jsonl"), lines(out / "eval.jsonl")

    assert {row["kind"] for row in held_out} == {"question", "claim"}
    assert not {row["question"] for row in held_out} & {row.get("question") for row in train}
    assert not {row["question"].lower().rstrip("?") for row in held_out} & {(row.get("question") or "").lower().rstrip("?") for row in train}
    assert {row["source"] for row in held_out if row["kind"] == "question"} >= {title for title, _, _ in ENTRIES}
    assert all(row["weight"] > 0 and row["domain"] and row["lang"] for row in train)


def test_ratings_and_claims_are_trained_on_with_their_weights(mixed):
    _, out = mixed
    train = {row["question"]: row for row in lines(out / "train.jsonl") if row["kind"] != "document"}

    assert train["What is tin?"]["weight"] == 3.0
    assert "What is lead?" not in train
    claims = [row for name in ("train", "eval") for row in lines(out / f"{name}.jsonl") if row["kind"] == "claim"]
    assert [row["answer"] for row in claims if row["claim"] == "Gold is a liquid."] == ["No, that is false."]


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path, mixed):
    _, out = mixed
    source = jsonl(tmp_path / "in.jsonl", ROWS)

    process(spec(tmp_path / "a", source), lambda share, message: None)
    process(spec(tmp_path / "b", source, seed=1), lambda share, message: None)

    assert (tmp_path / "a/out/train.jsonl").read_bytes() == (out / "train.jsonl").read_bytes()
    assert (tmp_path / "b/out/train.jsonl").read_bytes() != (out / "train.jsonl").read_bytes()


def test_a_data_set_of_documents_alone_is_examined_on_what_its_texts_define(tmp_path):
    texts = [
        f"Tool{chr(65 + n)}x is a program that counts the {noun} of a garden and prints them."
        for n, noun in enumerate(["apples", "birds", "stones", "leaves", "walls"])
    ]
    source = jsonl(
        tmp_path / "in.jsonl", [{"text": text} for text in [*texts, "Rain fell on the roofs all night and nobody in the town could sleep."]]
    )

    process(spec(tmp_path, source), lambda share, message: None)

    held_out = [row for row in lines(tmp_path / "out/eval.jsonl") if row["kind"] == "question"]
    documents = [row for row in lines(tmp_path / "out/train.jsonl") if row["kind"] == "document"]
    assert {row["answer"] for row in held_out} == set(texts)
    assert len(documents) == 6
    assert {row["weight"] for row in documents} == {1.0}


@pytest.mark.parametrize(
    "row",
    [
        {"text": "A single row of text with enough words in it."},
        {"question": "Why?", "answer": "Because."},
        {"claim": "Snow is white.", "label": True},
        {"title": "Gold", "text": "Gold is a metal."},
        {"question": "a?", "answer": "b", "rating": 4},
        {"text": "no"},
    ],
    ids=["document", "question", "claim", "entry", "rating", "all dropped"],
)
def test_a_single_row_of_any_kind_is_processed(tmp_path, row):
    report = process(spec(tmp_path, jsonl(tmp_path / "in.jsonl", [row])), lambda share, message: None)

    assert report["funnel"][0]["rows"] == 2
    assert (tmp_path / "out/eval.jsonl").exists()
    assert json.loads((tmp_path / "out/report.json").read_text()) == json.loads(json.dumps(report))


def test_files_of_several_formats_are_one_data_set_and_equal_ids_stay_apart(tmp_path):
    table = tmp_path / "b.csv"
    table.write_text("id,question,answer\nx,Who barks?,Dogs bark.\n")
    first = jsonl(tmp_path / "a.jsonl", [{"id": "x", "text": "The river rises in the mountains and reaches the sea."}])

    process(spec(tmp_path, first, table), lambda share, message: None)

    kept = [row["id"] for row in pq.read_table(tmp_path / "out/records.parquet").to_pylist() if row["reason"] is None]
    assert kept == ["x", "x-2"]


def test_pictures_are_carried_as_they_came_and_bad_ones_are_dropped_with_their_reason(tmp_path):
    red, blue = (as_data_url(Image.new("RGB", (8, 8), colour)) for colour in ("red", "blue"))
    asked = {"question": "What colour is it?", "domain": "colour", "lang": "en"}
    rows = [
        {**asked, "answer": "It is red.", "image": red, "split": "train"},
        {**asked, "answer": "It is blue.", "image": blue, "split": "train"},
        {**asked, "answer": "It is blue.", "image": blue, "split": "train"},
        {**asked, "answer": "It is red.", "image": blue.replace("data:image/png", "data:image/bmp"), "split": "train"},
        {**asked, "answer": "It is red.", "image": "https://example.org/red.png", "split": "train"},
        {**asked, "question": "Which colour?", "answer": "It is red.", "image": red, "split": "eval"},
        {"question": "Which colour is it?", "answer": "It is red.", "image": red, "rating": 5, "domain": "colour"},
        {"title": "Red", "text": "Red is the colour of blood and of ripe tomatoes.", "domain": "colour", "lang": "en"},
    ]
    source = tmp_path / "pictures.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = process(ProcessSpec(version=1, inputs=[source], output_folder=tmp_path / "out", work_folder=tmp_path / "work"), lambda share, said: None)

    assert report["reasons"]["bad_image"] == 2
    assert report["reasons"]["exact_duplicate"] == 1
    train, held_out = ([json.loads(line) for line in (tmp_path / "out" / f"{s}.jsonl").read_text().splitlines()] for s in ("train", "eval"))
    assert [(r["image"], r["answer"]) for r in train if r["question"] == "What colour is it?"] == [(red, "It is red."), (blue, "It is blue.")]
    assert [r["image"] for r in held_out if r["question"] == "Which colour?"] == [red]
    assert [r["image"] for r in train if r["question"] == "Which colour is it?"] == [red]
    assert not any(r.get("image") for r in train + held_out if r["source"])  # what is made of an entry is text
    table = pq.read_table(tmp_path / "out" / "records.parquet").to_pylist()
    assert not any("base64" in (row["text"] or "") for row in table)  # nor in the excerpt of a dropped row
