"""Uploading, reading a report and browsing records, in the browser."""

import re

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from apps.datasets.models import Dataset, ProcessingRun
from apps.datasets.presentation import funnel, marked
from apps.datasets.selectors import RecordFilter, clusters, made_of_entries, records, repaired
from tests.apps import making
from workers.corpus.records import Record


@pytest.fixture
def page(operator) -> Client:
    client = Client()
    client.force_login(operator)
    return client


def upload(page: Client, content: bytes, **fields):
    return page.post("/datasets/", {"file": SimpleUploadedFile("facts.jsonl", content), **fields}, HTTP_REFERER="http://testserver/datasets/")


def document(row: int, text: str, **fields) -> Record:
    return Record(row, f"d{row}", "document", text=text, lang="en", **fields)


@pytest.fixture
def rich(operator) -> Dataset:
    """One row of everything that a report shows."""
    kept = document(0, "Water is wet and flows.", original="Water is wet and flows. Buy now!", domain="chemistry", cluster=0)
    copy = document(1, "Water is wet and flows!", cluster=0).dropped("deduplicated", "near_duplicate", 0)
    advert = document(2, "Buy now").dropped("cleaned", "advertisement")
    entry = Record(3, "e3", "entry", title="Iron", text="Iron is a metal.", domain="chemistry", lang="en")
    pair = Record(4, "e3/q1", "question", question="What is iron?", answer="A metal.", domain="chemistry", lang="en", source="e3", split="eval")
    claim = Record(5, "e3/c1", "claim", text="Iron is a gas.", question="Is it true that iron is a gas?", answer="No, that is false.", label=False,
                   domain="chemistry", lang="en", source="e3", split="train", variant="wrong_fact")  # fmt: skip
    made = making.processed(operator, rows=[kept, copy, advert, entry, pair, claim])
    run = made.current_run
    left = {"raw": 4, "cleaned": 3, "deduplicated": 2, "classified": 2, "augmented": 3, "negatives": 4, "used": 4}
    run.report = run.report | {"funnel": [{"stage": stage, "rows": rows} for stage, rows in left.items()]}
    run.save()
    return made


def test_an_upload_is_processed_at_once_and_leads_to_its_page(page):
    answer = upload(page, b'{"text": "Water is wet and flows downhill."}\n', name="facts", process="on")
    dataset = Dataset.objects.get(name="facts")
    assert answer["Location"] == f"/datasets/{dataset.pk}/"
    assert ProcessingRun.objects.filter(dataset=dataset, status="queued").exists()


def test_an_upload_without_the_box_waits_for_process(page):
    upload(page, b'{"text": "Water is wet."}\n', name="facts")
    dataset = Dataset.objects.get(name="facts")
    assert "Process</button>" in page.get(f"/datasets/{dataset.pk}/").content.decode()
    page.post(f"/datasets/{dataset.pk}/process/")
    assert dataset.runs.count() == 1


def test_a_file_that_cannot_be_read_is_refused_at_its_field_and_the_name_is_kept(page):
    answer = upload(page, b"\x00\x01\x02\xff" * 100, name="my facts", process="on").content.decode()
    assert 'id="id_file_error"' in answer
    assert 'value="my facts"' in answer
    assert not Dataset.objects.exists()


def test_pressing_process_twice_processes_once_and_says_so(page, operator):
    dataset = making.dataset(operator)
    page.post(f"/datasets/{dataset.pk}/process/")
    told = page.post(f"/datasets/{dataset.pk}/process/", follow=True).content.decode()
    assert dataset.runs.count() == 1
    assert "already being processed" in told


def test_a_run_can_be_cancelled_and_resumed(page, operator):
    dataset = making.dataset(operator)
    page.post(f"/datasets/{dataset.pk}/process/")
    page.post(f"/datasets/{dataset.pk}/cancel/")
    assert dataset.runs.get().status == "cancelled"
    page.post(f"/datasets/{dataset.pk}/resume/")
    assert dataset.runs.get().status == "queued"


def test_a_viewer_sees_no_button_that_writes_and_may_not_post(viewer, operator):
    client = Client()
    client.force_login(viewer)
    dataset = making.dataset(operator)
    assert "upload-form" not in client.get("/datasets/").content.decode()
    assert "/process/" not in client.get(f"/datasets/{dataset.pk}/").content.decode()
    assert client.post(f"/datasets/{dataset.pk}/process/").status_code == 403
    assert upload(client, b'{"text": "x"}\n', name="n").status_code == 403


def test_the_fragment_of_a_finished_run_tells_the_page_to_reload(page, rich):
    assert page.get(f"/datasets/{rich.pk}/?fragment=1")["HX-Refresh"] == "true"


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("", ["advertisement", "chemistry"]),
        ("cleaned/", ["<mark> Buy now!</mark>"]),
        ("duplicates/", ["nearly a copy", "Water is wet and flows"]),
        ("questions/", ["Iron", "What is iron?", "held out"]),
        ("negatives/", ["Is it true that iron is a gas?", "another&#x27;s fact"]),
        ("records/", ["Buy now", "Iron is a metal."]),
    ],
)
def test_each_part_of_a_dataset_shows_its_rows(page, rich, part, words):
    text = page.get(f"/datasets/{rich.pk}/{part}").content.decode()
    assert [word for word in words if word not in text] == []


def test_a_drop_leads_to_the_records_it_dropped(page, rich):
    report = page.get(f"/datasets/{rich.pk}/").content.decode()
    link = re.search(r'href="([^"]*reason=advertisement)"', report)[1]
    found = page.get(link).content.decode()
    assert "Buy now" in found
    assert "Iron is a metal." not in found


def test_records_are_read_forwards_and_backwards_by_cursor(operator):
    rows = [document(n, f"Document number {n} about water.") for n in range(25)]
    rows.append(Record(25, "q", "question", question="What?", answer="That.", lang="en", split="eval"))
    run = making.processed(operator, rows=rows).current_run
    first = records(run, limit=10)
    second = records(run, after=first.after, limit=10)
    assert [r["row"] for r in second.records] == list(range(10, 20))
    assert [r["row"] for r in records(run, before=second.before, limit=10).records] == list(range(10))
    last = records(run, after=second.after, limit=10)
    assert last.after is None
    assert first.before is None


def test_records_are_found_by_words_whatever_the_case(rich):
    found = records(rich.current_run, RecordFilter(q="IRON IS A GAS")).records
    assert [row["id"] for row in found] == ["e3/c1"]


def test_selectors_join_made_rows_with_their_source_and_copies_with_what_stayed(rich):
    run = rich.current_run
    (source,), _more = made_of_entries(run, "question")
    assert (source.entry["id"], [row["id"] for row in source.made]) == ("e3", ["e3/q1"])
    (cluster,), _more = clusters(run)
    assert (cluster.kept["id"], [row["id"] for row in cluster.dropped]) == ("d0", ["d1"])
    (changed,), _more = repaired(run)
    assert changed["id"] == "d0"


def test_marked_text_holds_both_texts():
    before, after = "加微信 abc123。水是湿的。 Buy now! Water flows.", "水是湿的。 Water flows."
    pieces, long = marked(before, after)
    assert "".join(p.text for p in pieces if not p.new) == before
    assert "".join(p.text for p in pieces if not p.cut) == after
    assert not long


def test_the_funnel_tells_rows_made_from_rows_dropped():
    report = {
        "funnel": [{"stage": "raw", "rows": 10}, {"stage": "cleaned", "rows": 7}, {"stage": "augmented", "rows": 19}, {"stage": "used", "rows": 18}]
    }
    drops = {"raw": {"unreadable": 1}, "cleaned": {"too_short": 2}, "used": {"held_out": 1}}
    bars = funnel(report, drops)
    assert [(bar.rows, sum(d.rows for d in bar.dropped), bar.added) for bar in bars] == [(10, 0, 0), (7, 3, 0), (19, 0, 12), (18, 1, 0)]


def test_the_processed_files_can_be_taken_away_and_no_other(page, rich):
    assert b"What is iron?" in b"".join(page.get(f"/datasets/{rich.pk}/files/eval.jsonl").streaming_content)
    assert page.get(f"/datasets/{rich.pk}/files/secret_key").status_code == 404


@pytest.mark.parametrize("part", ["", "cleaned/", "records/"])
def test_an_unknown_dataset_is_not_found(page, part):
    assert page.get(f"/datasets/nothing/{part}").status_code == 404


def test_the_list_asks_the_database_as_often_for_many_rows_as_for_few(page, operator, django_assert_max_num_queries):
    for n in range(60):
        page.post(f"/datasets/{making.dataset(operator, f'dataset {n}').pk}/process/")
    page.get("/datasets/")
    with django_assert_max_num_queries(6):
        page.get("/datasets/")
