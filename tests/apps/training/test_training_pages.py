"""Starting, watching and comparing runs, in the browser."""

import plotly.graph_objects as go
import pytest
from django.test import Client

from apps.datasets.models import Dataset
from apps.jobs.models import Job, JobEvent
from apps.training.history import history
from apps.training.models import TrainingJob
from tests.apps import making

FORM = {
    "preset": "nano", "amount": "2", "unit": "minutes", "precision": "bf16", "router": "softmax", "accum_steps": "1", "world_size": "1", "zero_stage": "0", "seed": "0",
}  # fmt: skip


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
def dataset(operator) -> Dataset:
    return making.processed(operator)


def with_steps(job: TrainingJob, losses: list[float], first: int = 1, **more) -> TrainingJob:
    events = [
        JobEvent(
            job_id=job.pk, kind="step",
            data={"step": first + i, "loss": loss, "lr": 0.005, "tokens_per_second": 6000.0, "grad_norm": 1.0, "loss_scale": None, "skipped_steps": 0,
                  "expert_load_max_over_mean": 1.2, "expert_load": [[0.5, 0.5], [0.6, 0.4]], "elapsed": i * 0.1, **more},
        )
        for i, loss in enumerate(losses)
    ]  # fmt: skip
    JobEvent.objects.bulk_create(events)
    return job


def text(response) -> str:
    return response.content.decode()


def test_the_page_teaches_while_there_is_no_run(page, reader):
    assert "Start the first run" in text(page.get("/training/"))
    assert "Start the first run" not in text(reader.get("/training/"))


def test_a_run_is_started_from_a_preset_and_leads_to_its_page(page, dataset, operator):
    answer = page.post("/training/new/", FORM | {"dataset": dataset.pk, "accum_steps": "4"})
    job = TrainingJob.objects.get()
    assert answer["Location"] == f"/training/{job.pk}/"
    assert (job.minutes, job.steps, job.accum_steps, job.created_by) == (2.0, None, 4, operator)


def test_steps_instead_of_minutes(page, dataset):
    page.post("/training/new/", FORM | {"dataset": dataset.pk, "amount": "500", "unit": "steps"})
    job = TrainingJob.objects.get()
    assert (job.minutes, job.steps) == (None, 500)


def test_what_the_service_refuses_is_said_at_the_field_and_nothing_typed_is_lost(page, dataset):
    answer = page.post("/training/new/", FORM | {"dataset": dataset.pk, "amount": "7", "zero_stage": "2"})
    assert answer.status_code == 400
    assert 'id="id_zero_stage_error"' in text(answer)
    assert 'value="7"' in text(answer)
    assert not TrainingJob.objects.exists()


def test_a_viewer_sees_runs_but_may_not_start_or_cancel_one(reader, dataset):
    job = making.training_job(dataset)
    assert "Start a run" not in text(reader.get("/training/"))
    assert "Cancel" not in text(reader.get(f"/training/{job.pk}/"))
    assert reader.get("/training/new/").status_code == 403
    assert reader.post(f"/training/{job.pk}/cancel/").status_code == 403


def test_a_clone_begins_with_the_runs_own_values(page, dataset):
    job = making.training_job(dataset, accum_steps=8, router="sigmoid", domain_routing=0.2, options={"spec": {"lr": 0.001}})
    form = page.get(f"/training/new/?clone={job.pk}").context["form"]
    assert (form["accum_steps"].value(), form["router"].value(), form["amount"].value()) == (8, "sigmoid", 1)
    assert form["domain_routing"].value() == 0.2
    page.post("/training/new/", FORM | {"dataset": dataset.pk, "clone": job.pk, "domain_routing": "0.3"})
    clone = TrainingJob.objects.exclude(pk=job.pk).get()
    assert (clone.options, clone.domain_routing) == ({"spec": {"lr": 0.001}}, 0.3)


def test_experts_are_spread_from_the_form_and_a_clone_may_take_that_back(page, dataset):
    page.post("/training/new/", FORM | {"dataset": dataset.pk, "world_size": "2", "expert_parallel_size": "2"})
    job = TrainingJob.objects.get()
    assert job.expert_parallel_size == 2
    assert "Experts spread over" in text(page.get(f"/training/{job.pk}/"))
    assert page.get(f"/training/new/?clone={job.pk}").context["form"]["expert_parallel_size"].value() == 2
    page.post("/training/new/", FORM | {"dataset": dataset.pk, "clone": job.pk, "world_size": "2", "expert_parallel_size": "1"})
    assert TrainingJob.objects.exclude(pk=job.pk).get().expert_parallel_size == 1


def test_a_clone_may_take_back_checkpointing_and_smaller_passes(page, dataset):
    page.post("/training/new/", FORM | {"dataset": dataset.pk, "micro_batch": "8", "activation_checkpointing": "on"})
    job = TrainingJob.objects.get()
    assert job.options["spec"] == {"micro_batch": 8, "activation_checkpointing": True}
    page.post("/training/new/", FORM | {"dataset": dataset.pk, "clone": job.pk, "micro_batch": ""})  # an unticked box is not sent at all
    assert TrainingJob.objects.exclude(pk=job.pk).get().options["spec"] == {}


def test_a_recipe_is_given_in_the_form_and_a_clone_may_take_it_back(page, dataset):
    page.post("/training/new/", FORM | {"dataset": dataset.pk, "optimizer": "adamw", "ema_decay": "0.99"})
    job = TrainingJob.objects.get()
    assert job.recipe == {"optimizer": "adamw", "ema_decay": 0.99}
    assert "<code>ema_decay</code> 0.99" in text(page.get(f"/training/{job.pk}/"))
    form = page.get(f"/training/new/?clone={job.pk}").context["form"]
    assert (form["optimizer"].value(), form["ema_decay"].value(), form["schedule"].value()) == ("adamw", 0.99, "linear")
    page.post("/training/new/", FORM | {"dataset": dataset.pk, "clone": job.pk, "optimizer": "muon", "ema_decay": "0"})
    assert TrainingJob.objects.exclude(pk=job.pk).get().recipe == {}


def test_the_estimate_rests_on_earlier_runs_of_the_preset(page, dataset):
    assert "no run on this machine" in text(page.get("/training/new/estimate/", FORM | {"dataset": dataset.pk}))
    making.training_job(dataset, status="succeeded", metrics={"step": 1000, "elapsed": 100.0, "tokens_per_second": 6000.0})
    estimate = page.get("/training/new/estimate/", FORM | {"dataset": dataset.pk}).context["estimate"]
    assert (estimate.steps, estimate.tokens_per_second) == (1200, 6000.0)
    by_steps = page.get("/training/new/estimate/", FORM | {"dataset": dataset.pk, "amount": "100", "unit": "steps", "accum_steps": "2"}).context[
        "estimate"
    ]
    assert by_steps.seconds == pytest.approx(20.0)


def test_a_model_that_does_not_fit_is_called_so_beforehand(page, dataset):
    assert "does not fit" in text(page.get("/training/new/estimate/", FORM | {"dataset": dataset.pk, "preset": "moe-128b-a16b"}))


def test_the_nearest_values_that_fit_are_one_click_away(page, dataset, monkeypatch):
    monkeypatch.setattr("apps.training.estimates.machine_bytes", lambda: 2_000_000_000)
    estimate = page.get("/training/new/estimate/", FORM | {"dataset": dataset.pk, "preset": "small", "micro_batch": "128"})
    assert "Use these values" in text(estimate)
    filled = page.get(f"/training/new/?{estimate.context['apply']}")
    assert filled.context["estimate"].fits
    form = filled.context["form"]
    assert int(form["micro_batch"].value()) * int(form["accum_steps"].value()) == 128
    assert (form["preset"].value(), form["amount"].value()) == ("small", "2")


def test_all_charts_of_a_job_are_valid_plotly(page, dataset):
    job = with_steps(making.training_job(dataset, precision="fp16"), [5.0, 4.0, 3.0], loss_scale=65536.0, memory_bytes=7e8, mfu=0.21)
    Job.objects.filter(pk=job.pk).update(status="succeeded", result=making.EXPERTISE)
    JobEvent.objects.create(job_id=job.pk, kind="evaluation", data={"step": 3, "loss": 2.5, "bleu": 41.0, "answered": 8})
    charts = page.get(f"/training/{job.pk}/charts/").json()["charts"]
    assert set(charts) == {
        "loss",
        "tokens_per_second",
        "grad_norm",
        "lr",
        "loss_scale",
        "balance",
        "load",
        "memory",
        "mfu",
        "bleu",
        "held_out_loss",
        "domains",
        "information",
    }
    for chart in charts.values():
        assert chart["final"]
        assert not chart["empty"]
        go.Figure({"data": chart["data"], "layout": chart["layout"]})
    # layers × experts × domains are shown as domains × (layer, expert)
    assert charts["domains"]["data"][0]["z"][1] == [0.1, 0.9, 0.5, 0.5]
    bars, by_chance = charts["information"]["data"]
    assert (bars["y"], by_chance["y"]) == ([0.6, 0.01], [0.05, 0.04])
    assert charts["information"]["table"]["rows"][0] == ["layer 1", "0.600", "0.030", "58.8 %", "1.10", "0.90"]
    second = page.get(f"/training/{job.pk}/charts/?layer=2").json()["charts"]
    assert second["domains"]["data"][0]["x"] == ["2.1", "2.2"]
    assert f"/training/{job.pk}/charts/?layer=2" in text(page.get(f"/training/{job.pk}/?layer=2"))


def test_a_long_history_is_thinned_without_losing_its_spike(page, dataset):
    losses = [1.0] * 5000
    losses[3210] = 9.5
    job = with_steps(making.training_job(dataset), losses)
    trace = page.get(f"/training/{job.pk}/charts/").json()["charts"]["loss"]["data"][0]
    assert len(trace["x"]) <= 603
    assert trace["y"][trace["x"].index(3211)] == 9.5


def test_steps_that_a_resumed_job_repeats_replace_the_old_ones(dataset):
    job = with_steps(making.training_job(dataset), [5.0, 4.0, 3.0])
    assert history(job.pk).columns["loss"] == [5.0, 4.0, 3.0]
    with_steps(job, [2.5, 2.0], first=2)
    assert history(job.pk).columns["step"] == [1, 2, 3]
    assert history(job.pk).columns["loss"] == [5.0, 2.5, 2.0]


def test_evaluations_that_a_resumed_job_repeats_replace_the_old_ones(page, dataset):
    job = with_steps(making.training_job(dataset), [5.0, 4.0, 3.0])
    for step, bleu in ((10, 5.0), (20, 9.0), (20, 8.0), (30, 12.0)):
        JobEvent.objects.create(job_id=job.pk, kind="evaluation", data={"step": step, "loss": 2.0, "bleu": bleu, "answered": 8})
    trace = page.get(f"/training/{job.pk}/charts/").json()["charts"]["bleu"]["data"][0]
    assert (trace["x"], trace["y"]) == ([10, 20, 30], [5.0, 8.0, 12.0])


def test_the_live_part_asks_for_the_whole_page_once_the_run_is_over(page, dataset):
    job = making.training_job(dataset, status="running")
    assert "HX-Refresh" not in page.get(f"/training/{job.pk}/?fragment=status")
    Job.objects.filter(pk=job.pk).update(status="failed", error="Out of memory.")
    answer = page.get(f"/training/{job.pk}/?fragment=status")
    assert answer["HX-Refresh"] == "true"
    assert "Out of memory." in text(page.get(f"/training/{job.pk}/"))


def test_cancelling_twice_says_that_there_is_nothing_to_cancel(page, dataset):
    job = making.training_job(dataset)
    page.post(f"/training/{job.pk}/cancel/")
    assert Job.objects.get(pk=job.pk).status == "cancelled"
    answer = page.post(f"/training/{job.pk}/cancel/", HTTP_REFERER=f"http://testserver/training/{job.pk}/", follow=True)
    assert "nothing to cancel" in text(answer)


def test_up_to_six_runs_are_compared_in_one_chart(page, dataset):
    made = [with_steps(making.training_job(dataset), [3.0, 2.0]) for _ in range(7)]
    query = "&".join(f"job={job.pk}" for job in made)
    assert "Only the first 6 are shown" in text(page.get(f"/training/compare/?{query}"))
    chart = page.get(f"/training/compare/chart/?{query}&show=loss&over=elapsed").json()
    assert len(chart["data"]) == 6
    assert len({trace["line"]["color"] for trace in chart["data"]}) == 6
    go.Figure({"data": chart["data"], "layout": chart["layout"]})


def test_the_list_filters_pages_and_stays_within_twelve_queries(page, dataset, django_assert_max_num_queries):
    for number in range(30):
        making.training_job(dataset, status="failed" if number % 2 else "succeeded")
    with django_assert_max_num_queries(12):
        answer = page.get("/training/?status=failed")
    assert len(answer.context["page"].rows) == 15
    assert page.get("/training/").context["page"].next
