"""The demonstration's own corpus, against what is planted in it (demo/documents/planted.json)."""

import json
from pathlib import Path

import pytest

from workers.corpus.classify import classify
from workers.corpus.clean import clean
from workers.corpus.deduplicate import deduplicate
from workers.corpus.pipeline import process, read
from workers.corpus.records import ENTRY, Record
from workers.corpus.spec import ProcessSpec

DEMO = Path(__file__).resolve().parents[3] / "demo"
PLANTED = json.loads((DEMO / "documents" / "planted.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def cleaned() -> dict[str, Record]:
    return {record.id: record for record in clean(read(sorted(DEMO.rglob("*.jsonl"))))}


@pytest.fixture(scope="module")
def deduplicated(cleaned) -> dict[str, Record]:
    return {record.id: record for record in deduplicate(list(cleaned.values()))}


@pytest.mark.parametrize(
    ("planted", "reason", "recall"),
    [
        ("advertisement", "advertisement", 0.95),
        ("garbled", "garbled_text", 0.95),
        ("repeated", "repeated_characters", 1.0),
        ("too_short", "too_short", 1.0),
        ("code", "html_leftovers", 1.0),
    ],
)
def test_planted_rubbish_is_dropped_for_what_it_is(cleaned, planted, reason, recall):
    names = PLANTED[planted]

    assert sum(cleaned[name].reason == reason for name in names) >= recall * len(names)


@pytest.mark.parametrize("planted", ["boilerplate", "contact"])
def test_planted_surroundings_of_pages_are_dropped(cleaned, planted):
    assert all(cleaned[name].stage == "cleaned" and cleaned[name].reason for name in PLANTED[planted])


def test_incomplete_rows_are_dropped_before_anything_else(cleaned):
    assert {cleaned[name].reason for name in PLANTED["incomplete"]} == {"missing_fields", "invalid_value"}


def test_no_good_page_is_lost_and_each_is_restored_to_the_letter(cleaned):
    assert {name: cleaned[name].text for name in PLANTED["clean"]} == PLANTED["clean"]
    assert all(cleaned[name].kept for name in (*PLANTED["clean"], *PLANTED["duplicate_of"]))


def test_planted_copies_are_found_and_nothing_else_is_taken_for_one(deduplicated):
    copies = PLANTED["duplicate_of"]
    found = [
        copy
        for copy, source in copies.items()
        if deduplicated[copy].cluster is not None and deduplicated[copy].cluster == deduplicated[source].cluster
    ]
    dropped = {name for name, record in deduplicated.items() if record.stage == "deduplicated"}

    assert len(found) >= 0.97 * len(copies)
    assert dropped <= {*copies, *copies.values()}
    assert all(deduplicated[name].kept for group in PLANTED["distinct"] for name in group)


def test_there_are_enough_good_pages_and_entries_in_two_languages(deduplicated):
    entries = [r for r in deduplicated.values() if r.kept and r.kind == ENTRY]

    assert len(PLANTED["clean"]) >= 200
    assert len(entries) >= 600
    assert len({r.domain for r in entries}) >= 24
    assert all(sum(r.lang == lang for r in entries) >= 150 for lang in ("en", "zh"))


def test_most_pages_without_a_domain_get_the_right_one(deduplicated, tmp_path):
    done, report = classify(list(deduplicated.values()), tmp_path, seed=0)
    told = [r.domain == PLANTED["domain"][r.id] for r in done if r.kept and r.id in PLANTED["domain"] and not deduplicated[r.id].domain]

    assert sum(told) >= 0.7 * len(told) > 20
    assert report.accuracy >= 0.75
    assert len(report.per_domain) >= 20


def test_the_whole_corpus_becomes_training_and_held_out_rows_in_the_mixture_that_was_meant(tmp_path):
    spec = ProcessSpec(version=1, inputs=sorted(DEMO.rglob("*.jsonl")), output_folder=tmp_path / "out", work_folder=tmp_path)

    report = process(spec, lambda share, message: None)

    tokens = {(part["split"], part["kind"]): part["tokens"] for part in report["mixture"]}
    rows = {(part["split"], part["kind"]): part["rows"] for part in report["mixture"]}
    train = sum(count for (split, _), count in tokens.items() if split == "train")
    assert tokens["train", "document"] <= 0.055 * train
    assert rows["eval", "question"] >= 600
    assert 60 <= report["negatives"]["eval"] <= 150
    assert report["augmentation"]["well_formed"] >= 0.98
    assert tokens["train", "claim"] < tokens["train", "question"]
