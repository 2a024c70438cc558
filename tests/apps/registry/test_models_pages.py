"""Versions, their gates, promotion and roll-back, compression: in the browser."""

import json

import plotly.graph_objects as go
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from apps import artifacts
from apps.registry import services
from apps.registry.forms import FIELDS
from apps.registry.models import CompressionJob, Evaluation, EvaluationSet, ImportJob, ModelVersion
from apps.registry.selectors import lineage
from tests.apps import making
from workers.compression.applicable import OPTIONS
from workers.training.specialisation import MODALITIES


@pytest.fixture
def page(operator) -> Client:
    client = Client()
    client.force_login(operator)
    return client


@pytest.fixture
def reader(viewer) -> Client:
    client = Client()
    client.force_login(viewer)
    return client


@pytest.fixture
def dataset(operator):
    return making.processed(operator)


@pytest.fixture
def on(dataset):
    return dataset.current_run.evaluation_sets.get()


@pytest.fixture
def live(dataset, on, operator) -> ModelVersion:
    first = making.version("v1", run=dataset.current_run)
    making.evaluated(first, on, bleu=70.0)
    services.promote(version=first, actor=operator)
    first.refresh_from_db()
    return first


def candidate(live: ModelVersion, on, bleu: float, name: str = "v2") -> ModelVersion:
    made = making.version(name, run=live.run, parent=live)
    making.evaluated(made, on, bleu=bleu)
    services.decide(made)
    return made


def with_answers(evaluation: Evaluation, rows: list[dict]) -> None:
    folder = f"evaluations/{evaluation.pk}"
    path = artifacts.local_path(folder)
    path.mkdir(parents=True)
    (path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Evaluation.objects.filter(pk=evaluation.pk).update(folder=folder)


def said(question: str, answer: str, bleu: float, **more) -> dict:
    return {
        "question": question,
        "reference": "H2O.",
        "answer": answer,
        "lang": "en",
        "domain": "chemistry",
        "kind": "question",
        "bleu": bleu,
        **more,
    }


def text(response) -> str:
    return response.content.decode()


def test_the_pages_teach_while_there_is_no_version(reader):
    assert "No version yet" in text(reader.get("/models/"))
    assert "Nothing compressed yet" in text(reader.get("/compression/"))
    assert "No version has been evaluated" in reader.get("/compression/chart/").json()["empty"]


def test_promoting_a_refused_version_tells_every_reason_and_changes_nothing(page, live, on):
    worse = candidate(live, on, 71.0)
    assert 'aria-disabled="true"' in text(page.get(f"/models/{worse.pk}/"))
    answer = page.post(f"/models/{worse.pk}/promote/", follow=True)
    assert "BLEU 71.0 is below 73.5" in text(answer)
    live.refresh_from_db()
    assert live.state == "live"


def test_a_version_that_passed_is_promoted_and_rolled_back(page, live, on):
    better = candidate(live, on, 80.0)
    shown = text(page.get(f"/models/{better.pk}/"))
    assert 'id="promote"' in shown  # the dialog that names what changes
    assert "is live now and retires" in shown
    page.post(f"/models/{better.pk}/promote/")
    better.refresh_from_db()
    assert better.state == "live"
    assert "Roll back to v1" in text(page.get(f"/models/{better.pk}/"))
    answer = page.post(f"/models/{better.pk}/rollback/", follow=True)
    assert "v1 is live again." in text(answer)
    live.refresh_from_db()
    assert live.state == "live"


def test_a_viewer_reads_the_gate_but_has_no_buttons(reader, live, on):
    worse = candidate(live, on, 71.0)
    shown = text(reader.get(f"/models/{worse.pk}/"))
    assert "is below 73.5" in shown
    assert '<form method="post" action="/models/' not in shown
    assert reader.post(f"/models/{worse.pk}/promote/").status_code == 403
    assert reader.post("/compression/", {"version": worse.pk, "method": "int8"}).status_code == 403


def test_versions_are_sorted_by_what_they_measured_and_unmeasured_ones_come_last(page, live, on):
    candidate(live, on, 80.0, "v2")
    candidate(live, on, 60.0, "v3")
    making.version("v4", run=live.run)
    names = [row.name for row, _evaluation in page.get("/models/?sort=bleu").context["rows"]]
    assert names == ["v2", "v1", "v3", "v4"]
    assert [row.name for row, _ in page.get("/models/?sort=bleu&order=asc").context["rows"]] == ["v3", "v1", "v2", "v4"]
    assert [row.name for row, _ in page.get("/models/?state=live").context["rows"]] == ["v1"]


def test_answers_stand_beside_the_baselines_worst_first(page, live, on):
    better = candidate(live, on, 80.0)
    with_answers(live.evaluations.get(), [said("What is water?", "Ice.", 10.0), said("What is ice?", "Water.", 90.0)])
    with_answers(better.evaluations.get(), [
        said("What is water?", "H2O.", 100.0), said("What is ice?", "Steam.", 5.0),
        said("Is ice hot?", "Yes.", 0.0, kind="claim", label=False, refused=False),
    ])  # fmt: skip
    shown = page.get(f"/models/{better.pk}/answers/").context["shown"]
    assert [(pair.question, pair.answer, pair.baseline_answer) for pair in shown] == [
        ("What is ice?", "Steam.", "Water."),
        ("What is water?", "H2O.", "Ice."),
    ]
    lost = page.get(f"/models/{better.pk}/answers/?view=lost").context["shown"]
    assert [pair.question for pair in lost] == ["What is ice?"]
    assert "accepted though false" in text(page.get(f"/models/{better.pk}/answers/?view=claims"))


def test_a_file_is_downloaded_whole_and_no_path_leads_elsewhere(reader, live):
    answer = reader.get(f"/models/{live.pk}/files/model.safetensors")
    assert b"".join(answer.streaming_content) == b"w" * 1000
    assert answer["Content-Length"] == "1000"
    assert reader.get(f"/models/{live.pk}/files/../../secret_key").status_code == 404


def test_the_page_watches_itself_and_asks_to_be_loaded_again_when_it_is_out_of_date(page, live, on):
    better = candidate(live, on, 80.0)
    seen = page.get(f"/models/{better.pk}/").context["seen"]
    same = page.get(f"/models/{better.pk}/?fragment=work&seen={seen}")
    assert (same.status_code, "HX-Refresh" in same) == (204, False)
    page.post(f"/models/{better.pk}/promote/")
    assert page.get(f"/models/{better.pk}/?fragment=work&seen={seen}")["HX-Refresh"] == "true"


def test_lineage_takes_two_queries_however_long_it_is(live, on, django_assert_num_queries):
    last = live
    for number in range(2, 9):
        last = making.version(f"v{number}", parent=last, run=live.run)
    with django_assert_num_queries(2):
        assert [version.name for version in lineage(last)] == [f"v{n}" for n in range(1, 9)]


def test_a_version_with_children_and_history_stays_within_twelve_queries(page, live, on, django_assert_max_num_queries, monkeypatch):
    monkeypatch.setattr("apps.portal.context.COUNTS_KEPT_SECONDS", 3600)  # those of the rail, which the first page counts; not two
    for number in range(5):
        services.decide(candidate(live, on, 60.0 + number, f"w{number}"))
    page.get("/models/")
    with django_assert_max_num_queries(12):
        page.get(f"/models/{ModelVersion.objects.get(name='w4').pk}/")


def test_pruning_is_given_its_own_fields_and_no_others(page, live):
    asked = {"version": live.pk, "method": "prune", "sparsity": "0.5", "structure": "neuron", "minutes": "3", "max_bleu_loss": "1"}
    page.post("/compression/", asked)
    job = CompressionJob.objects.get()
    assert job.options == {"sparsity": 0.5, "structure": "neuron"}


@pytest.mark.parametrize("method", FIELDS)
def test_a_form_that_is_filled_in_for_every_method_gives_the_chosen_one_its_own(page, live, method):
    every = {
        "sparsity": "0.5", "structure": "neuron", "importance": "use", "recovery_minutes": "2", "student": "", "minutes": "3", "weights": "int8",
        "max_bleu_loss": "1", "max_megabytes": "2", "min_speed_ratio": "2", "max_p99_ms": "9", "target": "cpu", "most_minutes": "4",
    }  # fmt: skip
    answer = page.post("/compression/", {"version": live.pk, "method": method, **every})
    job = CompressionJob.objects.get()
    assert answer["Location"] == f"/compression/{job.pk}/"
    assert bool(job.options) == bool(FIELDS[method])
    assert set(job.options) <= set(OPTIONS[method])


def test_a_form_that_is_sent_twice_leads_twice_to_the_one_job(page, live):
    once, again = (page.post("/compression/", {"version": live.pk, "method": "prune", "sparsity": "0.5"}) for _time in range(2))
    assert (once.status_code, once["Location"]) == (302, f"/compression/{CompressionJob.objects.get().pk}/")
    assert again["Location"] == once["Location"]


def test_a_threshold_and_a_sparsity_are_refused_at_the_field(page, live):
    answer = page.post("/compression/", {"version": live.pk, "method": "prune", "sparsity": "0.5", "threshold": "0.1"})
    assert answer.status_code == 400
    assert 'id="id_sparsity_error"' in text(answer)
    assert not CompressionJob.objects.exists()


def test_the_scatter_is_valid_plotly_and_leads_to_each_version(page, live, on):
    candidate(live, on, 80.0)
    chart = page.get("/compression/chart/").json()
    go.Figure({"data": chart["data"], "layout": chart["layout"]})
    assert chart["data"][0]["text"] == ["v2", "v1"]
    assert chart["data"][0]["customdata"][1] == f"/models/{live.pk}/"
    assert chart["data"][0]["marker"]["line"]["width"] == [3, 1]  # as large and as fast, and better: v1 is not on the front


def test_the_policys_trail_is_told_with_its_figures(page, live):
    trail = [
        {
            "step": "INT8",
            "decision": "refused",
            "figures": {"bleu": 60.0, "bytes": 250, "size_ratio": 0.25},
            "reason": "BLEU 60.0 is below the least of 69.0.",
        }
    ]
    job = CompressionJob.objects.create(title="policy of v1", model_version=live, method="policy", status="succeeded", trail=trail)
    shown = text(page.get(f"/compression/{job.pk}/"))
    assert "is below the least of 69.0" in shown
    assert "not good enough" in shown


def finished(live, method: str, trail=(), **details) -> CompressionJob:
    return CompressionJob.objects.create(
        title=f"{method} of v1", model_version=live, method=method, status="succeeded", trail=list(trail), result={"details": details}
    )


def test_the_policys_page_draws_what_was_tried_and_the_front(page, live):
    def row(step, decision, front, **figures):
        return {"step": step, "decision": decision, "figures": figures, "reasons": ["Wanted: at least 69.0 BLEU."], "reason": "", "front": front}

    trail = [
        row("baseline", "measured", True, bleu=70.0, bytes=1000, speed_ratio=1.0, p99_ms=4.0, tokens_per_second=10.0),
        row("INT8", "refused", False, bleu=60.0, bytes=250, speed_ratio=1.0, p99_ms=4.0, tokens_per_second=10.0),
        {"step": "mixed precision", "decision": "skipped", "figures": {}, "reasons": ["It would help nothing."], "reason": ""},
        row("distillation and INT8", "chosen", True, bleu=69.5, bytes=60, speed_ratio=3.0, p99_ms=1.0, tokens_per_second=30.0),
    ]
    job = finished(live, "policy", trail)
    chart = page.get(f"/compression/{job.pk}/chart/").json()
    go.Figure({"data": chart["data"], "layout": chart["layout"]})
    line, points = chart["data"]
    assert points["x"] == [0.001, 0.0, 0.0]
    assert line["y"] == [69.5, 70.0]  # from the smallest up
    shown = text(page.get(f"/compression/{job.pk}/?tables=1"))
    assert "not tried" in shown
    assert "on the front" in shown
    assert "3.00 ×" in shown


def test_the_page_of_a_pruning_draws_its_curve_and_how_far_one_may_go(page, live):
    curve = [{"sparsity": s, "bleu": b, "bytes": 1000 - round(600 * s), "tokens_per_second": 5.0} for s, b in ((0.0, 70.0), (0.3, 69.5), (0.6, 20.0))]
    job = finished(live, "prune", pruning_curve=curve, recommended_sparsity=0.3)
    chart = page.get(f"/compression/{job.pk}/chart/").json()
    go.Figure({"data": chart["data"], "layout": chart["layout"]})
    assert chart["data"][0]["y"] == [70.0, 69.5, 20.0]
    assert chart["layout"]["shapes"][0]["x0"] == 30.0
    shown = text(page.get(f"/compression/{job.pk}/?tables=1"))
    assert "Pruning curve" in shown
    assert "without recovery; with recovery more may go" in shown


def test_the_page_of_a_student_draws_its_loss(page, live):
    job = finished(live, "distill", curve=[[10, 1.0, 3.5], [20, 2.0, 2.5]])
    assert page.get(f"/compression/{job.pk}/chart/").json()["data"][0]["y"] == [3.5, 2.5]


def test_a_job_that_drew_nothing_has_no_chart(page, live):
    assert "data-chart" not in text(page.get(f"/compression/{finished(live, 'int8').pk}/"))


def test_before_and_after_tell_the_speed_that_the_job_measured(page, live):
    job = finished(live, "int8")
    child = making.version("v1-int8", kind="int8", parent=live)
    ModelVersion.objects.filter(pk=child.pk).update(compression_job=job, details={"speed_ratio": {"batch_1": 3.0, "batch_8": 2.25}})
    assert "2.25 ×" in text(page.get(f"/compression/{job.pk}/"))


def test_before_and_after_are_of_the_same_questions(page, live, on):
    """The parent, live, was asked a newer set since: its child was not."""
    job = finished(live, "int8")
    child = making.version("v1-int8", kind="int8", parent=live, run=live.run)
    ModelVersion.objects.filter(pk=child.pk).update(compression_job=job)
    making.evaluated(child, on, bleu=69.5)
    newer = EvaluationSet.objects.create(run=live.run, sha256="f" * 64, path="x", questions=5)
    making.evaluated(live, newer, bleu=12.5)

    told = text(page.get(f"/compression/{job.pk}/"))
    assert "69.5" in told and "70.0" in told and "12.5" not in told
    assert page.get("/compression/chart/").json()["data"][0]["y"] == [70.0, 69.5]


def test_recovery_and_importance_are_given_where_they_belong(page, live):
    asked = {"version": live.pk, "method": "prune", "sparsity": "0.5", "structure": "2:4", "importance": "use", "recovery_minutes": "2"}
    page.post("/compression/", asked)
    assert CompressionJob.objects.get().options == {"structure": "2:4", "minutes": 2.0}


def test_the_policys_minutes_are_of_all_of_it(page, live):
    page.post("/compression/", {"version": live.pk, "method": "policy", "minutes": "9", "most_minutes": "2"})
    assert CompressionJob.objects.get().options["minutes"] == 2.0


def test_an_old_version_can_still_be_chosen_by_its_link(page, live):
    ModelVersion.objects.bulk_create(ModelVersion(number=10 + n, name=f"x{n}", kind="moe", folder="x") for n in range(80))
    assert f'value="{live.pk}" selected' in text(page.get(f"/compression/?version={live.pk}"))


def test_the_version_page_shows_which_experts_learnt_what(page, dataset):
    plain = making.version("v1", run=dataset.current_run)
    assert "charts/?layer" not in text(page.get(f"/models/{plain.pk}/"))
    plain.details = making.EXPERTISE
    plain.save()
    address = f"/models/{plain.pk}/charts/?layer=0"
    assert address in text(page.get(f"/models/{plain.pk}/"))
    charts = page.get(address).json()["charts"]
    assert set(charts) == {"domains", "information"}
    for chart in charts.values():
        go.Figure({"data": chart["data"], "layout": chart["layout"]})
    assert charts["information"]["now"] == "of 1.00 bits"
    assert "58.8 %" in text(page.get(f"/models/{plain.pk}/?tables=1"))
    assert page.get("/models/nobody/charts/").status_code == 404


def test_the_heat_map_of_a_model_that_sees_pictures_tells_them_from_text(page, dataset):
    version = making.version("v1", run=dataset.current_run)
    parted = {"entropy": 0.9, "layers": [0.85, 0.1]}
    version.details = making.EXPERTISE | {
        "domains": ["shape", *MODALITIES], "specialisation": making.EXPERTISE["specialisation"] | {"modality": parted},
        "expert_domain": [[[0.7, 0.1, 0.8], [0.3, 0.9, 0.2]], [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]],
    }  # fmt: skip
    version.save()
    address = f"/models/{version.pk}/charts/"
    heat = page.get(f"{address}?layer=0").json()["charts"]["domains"]
    assert heat["data"][0]["y"] == ["shape", "picture tokens", "text tokens"]
    assert heat["now"] == "text or picture: 0.85 / 0.10 of 0.90 bits"
    assert page.get(f"{address}?layer=2").json()["charts"]["domains"]["now"] == "text or picture: 0.10 of 0.90 bits"


# -- import


def test_a_model_is_imported_by_path_or_files_and_what_is_wrong_is_said_at_its_field(page, reader, settings, tmp_path):
    settings.IMPORT_ROOTS = [*settings.IMPORT_ROOTS, tmp_path / "root"]
    folder = tmp_path / "root" / "gpt"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    form = page.get("/models/import/").content.decode()
    assert "deepseek_v3" in form
    for given in ({"name": "gpt"}, {"name": "gpt", "path": "/etc"}, {"name": "gpt", "path": "s3://elsewhere/gpt"}, {"name": "a/b", "path": "gpt"}):
        refused = page.post("/models/import/", given)
        assert refused.status_code == 200
        assert "field-error" in refused.content.decode(), given
    quantized = {"model_type": "mixtral", "quantization_config": {"quant_method": "awq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(quantized))
    sent = [SimpleUploadedFile("config.json", json.dumps(quantized).encode()), SimpleUploadedFile("model.safetensors", b"w")]
    for given in ({"name": "gpt", "path": "gpt"}, {"name": "gpt", "files": sent}):
        assert "Weights quantized as awq cannot be read" in page.post("/models/import/", given).content.decode()
    assert not ImportJob.objects.exists()
    (folder / "config.json").write_text("{}")
    assert page.post("/models/import/", {"name": "gpt", "path": "gpt"}).status_code == 302
    parent = making.version("v1")
    adapter = [SimpleUploadedFile("adapter_config.json", b"{}"), SimpleUploadedFile("adapter_model.safetensors", b"w")]
    assert page.post("/models/import/", {"name": "tuned", "files": adapter, "parent": parent.pk}).status_code == 302
    files = [SimpleUploadedFile("config.json", b"{}"), SimpleUploadedFile("model.safetensors", b"w")]
    assert page.post("/models/import/", {"name": "sent", "files": files}).status_code == 302
    assert sorted(ImportJob.objects.values_list("name", flat=True)) == ["gpt", "sent", "tuned"]
    shown = page.get("/models/import/?fragment=jobs").content.decode()
    assert "gpt" in shown and "sent" in shown and "every 2s" in shown
    assert reader.get("/models/import/").status_code == 403


def test_the_draft_is_chosen_and_cleared_on_the_versions_page(page, reader, live):
    student = making.version("v1-student", kind="distilled", parent=live, size=200)
    address = f"/models/{live.pk}/"
    assert "v1-student (" in page.get(address).content.decode()
    assert reader.post(f"{address}draft/", {"draft": student.pk}).status_code == 403

    said = page.post(f"{address}draft/", {"draft": student.pk}, follow=True).content.decode()
    assert "v1-student guesses ahead for v1." in said
    assert f'value="{student.pk}" selected' in said
    assert "No guess within the last day" in said

    assert "Nobody guesses ahead for v1." in page.post(f"{address}draft/", {"draft": ""}, follow=True).content.decode()
    assert "draft-title" not in page.get(f"/models/{student.pk}/").content.decode()  # nobody is smaller
