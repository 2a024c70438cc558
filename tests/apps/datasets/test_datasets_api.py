import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from apps.accounts.models import AuditEntry
from apps.datasets.models import ProcessingRun
from tests.apps import making
from workers.corpus.records import Record

pytestmark = pytest.mark.django_db
CONTENT = {
    "data.jsonl": b'{"title": "Water", "text": "Water is made of hydrogen and oxygen."}\n', "data.csv": b"question,answer\nWhat is water?,H2O.\n",
    "data.txt": "水是由氢和氧组成的。\n\nWater is wet.\n".encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENT)
def test_an_uploaded_file_is_kept_byte_for_byte_and_audited(as_operator, operator, name):
    response = as_operator.upload("/api/v1/datasets/", {"name": "mine", "file": SimpleUploadedFile(name, CONTENT[name])})

    row = response.json()
    assert response.status_code == 201, row
    assert (row["name"], row["bytes"], row["status"], row["created_by"]) == ("mine", len(CONTENT[name]), "uploaded", "operator")
    assert row["files"][0]["name"] == name
    entry = AuditEntry.objects.get(action="dataset.create")
    assert (entry.actor, entry.object_id, entry.source) == (operator, row["id"], "127.0.0.1")


def test_records_come_as_json_too(as_operator):
    row = as_operator.post(
        "/api/v1/datasets/", {"name": "mine", "records": [{"text": "Water is wet."}, {"claim": "Ice is hot.", "label": False}]}
    ).json()

    assert row["format"] == "jsonl"
    assert row["bytes"] > 0


def test_processing_is_a_job_that_can_be_read_again_and_runs_once_at_a_time(as_operator, operator):
    made = making.dataset(operator)

    response = as_operator.post(f"/api/v1/datasets/{made.pk}/process/")

    job = response.json()
    assert (response.status_code, job["status"], job["progress"], job["eta_seconds"], job["error"]) == (202, "queued", 0.0, None, None)
    assert job["url"].startswith("http://testserver/api/v1/")
    assert as_operator.get(job["url"]).json() == job
    again = as_operator.post(f"/api/v1/datasets/{made.pk}/process/")
    assert (again.status_code, again.json()["job"]) == (409, job["id"])
    assert ProcessingRun.objects.count() == 1
    assert [j["id"] for j in as_operator.get(f"/api/v1/datasets/{made.pk}/").json()["jobs"]] == [job["id"]]


def test_a_report_tells_funnel_reasons_domains_and_duplicates(as_viewer, operator):
    made = making.processed(operator)

    report = as_viewer.get(f"/api/v1/datasets/{made.pk}/report/").json()

    assert report["funnel"] == [{"stage": "raw", "rows": 4}, {"stage": "used", "rows": 3}]
    assert report["reasons"] == {"advertisement": 1}
    assert report["domains"] == {"chemistry": 3}
    assert report["duplicates"] == {"clusters": 0, "rows": 0}


@pytest.mark.parametrize("what", ["report", "records"])
def test_what_is_not_processed_has_no_report_and_says_what_to_do(as_viewer, operator, what):
    response = as_viewer.get(f"/api/v1/datasets/{making.dataset(operator).pk}/{what}/")

    assert response.status_code == 409
    assert "process it first" in response.json()["detail"]


@pytest.mark.parametrize(("query", "rows"), [
    ("", [0, 1, 2, 3]), ("stage=cleaned", [1]), ("reason=advertisement", [1]), ("domain=chemistry", [0, 2, 3]), ("kind=question", [2, 3]),
    ("lang=zh", []), ("kind=question&domain=chemistry&stage=used", [2, 3]), ("q=h2o", [0, 2, 3]), ("split=eval", [2, 3]),
])  # fmt: skip
def test_records_are_found_by_their_fields(as_viewer, operator, query, rows):
    made = making.processed(operator)

    assert [r["row"] for r in as_viewer.get(f"/api/v1/datasets/{made.pk}/records/?{query}").json()["results"]] == rows


def test_records_are_read_page_by_page_forwards_and_back(as_viewer, operator):
    rows = [Record(n, f"r{n}", "document", text=f"text {n}", domain="odd" if n % 2 else "even") for n in range(25)]
    made = making.processed(operator, rows=rows)

    def walk(url):
        pages = []
        while url:
            page = as_viewer.get(url).json()
            pages.append([r["row"] for r in page["results"]])
            last, url = page, page["next"]
        return pages, last

    pages, last = walk(f"/api/v1/datasets/{made.pk}/records/?page_size=5&domain=odd")

    assert [row for page in pages for row in page] == list(range(1, 25, 2))
    assert [len(page) for page in pages] == [5, 5, 2]
    assert [r["row"] for r in as_viewer.get(last["previous"]).json()["results"]] == pages[1]


def test_lists_are_newest_first_in_pages_and_filtered(as_viewer, operator):
    for n in range(5):
        making.dataset(operator, f"d{n}")

    first = as_viewer.get("/api/v1/datasets/?page_size=3").json()
    second = as_viewer.get(first["next"]).json()

    assert [row["name"] for row in first["results"] + second["results"]] == ["d4", "d3", "d2", "d1", "d0"]
    assert (second["next"], first["previous"]) == (None, None)
    assert [row["name"] for row in as_viewer.get("/api/v1/datasets/?name=d2").json()["results"]] == ["d2"]
