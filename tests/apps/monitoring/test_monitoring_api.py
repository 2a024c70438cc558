import time
from types import SimpleNamespace

import pytest

from apps.accounts.models import AuditEntry
from apps.jobs.models import Job, JobEvent
from apps.monitoring import names, recorder
from apps.monitoring.models import Alert
from apps.monitoring.presence import be_present
from apps.monitoring.tally import tally
from apps.redis import connection
from tests.apps import making

pytestmark = pytest.mark.django_db


def points(client, query):
    return client.get(f"/api/v1/metrics/timeseries?{query}").json()["points"]


@pytest.fixture
def now(monkeypatch) -> int:
    """Requests are counted and charts are drawn in one second, in the middle of a minute: no point ends between two lines of a test."""
    at = int(time.time()) // 60 * 60 + 30
    for module in ("tally", "selectors"):
        monkeypatch.setattr(f"apps.monitoring.{module}.time", SimpleNamespace(time=lambda: at, sleep=time.sleep))
    return at


def test_the_charts_count_every_request_once_and_by_version(as_viewer, now):
    version, other = making.version("v1"), making.version("v2")
    for latency in (10, 20, 30, 1000):
        recorder.observe(version=version.pk, route="generate", latency_ms=latency)
    recorder.observe(version=other.pk, route="generate", latency_ms=5, outcome="error", cached=True)
    tally.write()

    for query, requests in (("", 5), (f"&version={version.pk}", 4), ("&version=v2", 1)):
        found = points(as_viewer, f"window=60&step=10{query}")
        assert sum(p["requests"] for p in found) == requests
        assert sum(p["qps"] for p in found) > 0
    busy = [p for p in points(as_viewer, f"window=60&step=60&version={version.pk}") if p["requests"]]
    assert busy[-1]["p99_ms"] == pytest.approx(1000, rel=0.02)
    assert busy[-1]["error_rate"] == 0
    assert [p["error_rate"] for p in points(as_viewer, "window=60&step=60&version=v2") if p["requests"]] == [1.0]


def test_every_point_of_the_window_is_there_also_where_nothing_happened(as_viewer):
    found = points(as_viewer, "window=300&step=10")

    assert len(found) == 30
    assert {(p["requests"], p["p99_ms"]) for p in found} == {(0, None)}


def test_eight_days_are_shown_in_at_most_two_thousand_points(as_viewer):
    assert 100 < len(points(as_viewer, "window=691200&step=1")) <= 2000


def test_an_alert_is_acknowledged_once_by_somebody(as_operator, operator):
    alert = Alert.objects.create(rule="p99_latency", state="firing", value=900, threshold=500, message="slow")

    row = as_operator.post(f"/api/v1/alerts/{alert.pk}/acknowledge/").json()

    assert (row["state"], row["acknowledged_by"]) == ("firing", "operator")
    assert as_operator.post(f"/api/v1/alerts/{alert.pk}/acknowledge/").json() == row
    assert AuditEntry.objects.filter(action="alert.acknowledge").count() == 1
    assert [a["id"] for a in as_operator.get("/api/v1/alerts/?state=firing").json()["results"]] == [alert.pk]
    Alert.objects.update(state="resolved")
    assert as_operator.post(f"/api/v1/alerts/{alert.pk}/acknowledge/").status_code == 409


# -- probes


def test_the_probes_and_the_figures_need_no_sign_in_and_change_nothing(client):
    assert client.get("/healthz").content == b"ok\n"
    assert client.get("/readyz").json() == {"ready": True, "reasons": {}}
    assert client.post("/healthz").status_code == 405


def test_it_is_not_ready_while_a_version_is_live_and_nothing_answers(client):
    making.version("v1", state="live")
    response = client.get("/readyz")
    assert (response.status_code, list(response.json()["reasons"])) == (503, ["inference"])

    be_present("inference", "w", seconds=60)
    assert client.get("/readyz").status_code == 200


def test_prometheus_reads_requests_the_queue_and_the_jobs_that_wait(client, operator):
    making.training_job(making.processed(operator))
    recorder.observe(version="v", route="generate", latency_ms=10)
    connection().zadd(names.IN_FLIGHT, {"a": 9e12})

    text = client.get("/metrics").content.decode()

    assert 'dsportal_requests_total{outcome="ok",route="generate",tenant="none",version="v"}' in text
    assert "dsportal_queue_depth 1.0" in text
    assert 'dsportal_jobs_waiting{kind="training",status="queued"} 1.0' in text


# -- advisors


def advise(client, query):
    return client.get(f"/api/v1/advisor/hardware/?{query}").json()


def test_training_memory_follows_the_formulas_of_zero(as_viewer):
    psi = 128_051_453_696
    advice = advise(as_viewer, "preset=moe-128b-a16b&gpus=1024&zero_stage=3&batch=1&sequence=1")

    parts = {part["name"]: part["bytes"] for part in advice["parts"]}
    assert (parts["weights"], parts["gradients"], parts["optimizer"]) == pytest.approx((2 * psi / 1024, 2 * psi / 1024, 12 * psi / 1024))
    states = [stage["bytes_per_rank"] - advice["stages"][0]["bytes_per_rank"] for stage in advice["stages"][:3]]
    assert states == pytest.approx([0, -12 * psi * 1023 / 1024, -14 * psi * 1023 / 1024])
    assert all(part["formula"] and part["why"] for part in advice["parts"])


@pytest.mark.parametrize(("stage", "shares"), [(0, (1, 1, 1)), (1, (1, 1, 2)), (2, (2, 2, 2)), (3, (2, 2, 2))])
def test_the_portals_own_recipe_keeps_one_momentum_for_matrices_and_shards_as_fsdp2_does(as_viewer, stage, shares):
    """benchmarks/zero_memory.py measures these bytes on real ranks."""
    advice = advise(as_viewer, f"preset=small&gpus=2&precision=fp32&recipe=portal&zero_stage={stage}")

    psi, matrices = 11_681_072, 6 * (256 * 32 * (2 * 8 + 2 * 4) + 3 * 8 * 256 * 256)
    parts = {part["name"]: part["bytes"] for part in advice["parts"]}
    whole = (4 * psi, 4 * psi, 4 * matrices + 8 * (psi - matrices))
    assert (parts["weights"], parts["gradients"], parts["optimizer"]) == pytest.approx(
        [each / share for each, share in zip(whole, shares, strict=True)]
    )


def test_the_smallest_fleet_for_a_deadline_is_named_for_each_device_cheapest_first(as_viewer):
    advice = advise(as_viewer, "preset=moe-16b-a3b&zero_stage=3&tokens=1e12&days=30&batch=1&sequence=4096")

    possible = [each for each in advice["devices"] if each["possible"]]
    assert {each["device"]["name"] for each in possible} >= {"H100 80 GB", "H200 141 GB", "A100 80 GB"}
    for each in possible:
        assert 30 * 24 * (each["count"] - 1) / each["count"] < each["hours"] <= 30 * 24  # one fewer would be late
        assert each["cost"] == pytest.approx(each["count"] * each["hours"] * each["device"]["price_per_hour"])
        assert each["device"]["source"].startswith("https://")
    assert [each["cost"] for each in possible] == sorted(each["cost"] for each in possible)
    assert advice["recommended"] == possible[0]["device"]["name"]


def test_replicas_grow_with_the_rate_of_questions_and_keep_the_limit(as_viewer):
    def h100(qps: int) -> dict:
        devices = advise(as_viewer, f"preset=moe-16b-a3b&purpose=serve&qps={qps}&p99_ms=3000&answer_tokens=64")["devices"]
        return next(each for each in devices if each["device"]["name"] == "H100 80 GB")

    few, many = h100(50), h100(5000)
    assert few["count"] < many["count"]
    assert few["p99_ms"] <= 3000
    assert many["p99_ms"] <= 3000


def test_the_missions_case_is_explained_by_the_formula_that_gives_it(as_viewer):
    mission = advise(as_viewer, "preset=nano")["mission"]

    assert mission["implied_parameters"] * 16 * 1024 == pytest.approx(48e12)
    assert mission["claimed"][1]["bytes_in_all"] == pytest.approx(12e12, rel=0.01)
    assert mission["claimed"][3]["bytes_in_all"] == pytest.approx(16 * mission["implied_parameters"])
    assert "stage 1" in mission["explanation"]


def test_a_device_is_advised_only_where_it_holds_the_model(as_viewer):
    for advice in (advise(as_viewer, "parameters=7e9&precision=bf16"), advise(as_viewer, "parameters=7e9&purpose=serve&qps=50&p99_ms=5000")):
        for device in advice["devices"]:
            if device["possible"]:
                assert device["bytes_per_rank"] <= device["device"]["memory_bytes"]
        assert advice["recommended"] in {device["device"]["name"] for device in advice["devices"] if device["possible"]}
        assert {"A100 40 GB", "A100 80 GB", "H100 80 GB", "H200 141 GB", "T4 16 GB", "L4 24 GB"} <= {d["device"]["name"] for d in advice["devices"]}


def test_more_traffic_takes_more_devices(as_viewer):
    counts = [
        next(
            d["count"]
            for d in advise(as_viewer, f"parameters=7e9&purpose=serve&p99_ms=5000&qps={qps}")["devices"]
            if d["device"]["name"].startswith("A100 80")
        )
        for qps in (1, 100, 10_000)
    ]

    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_tuning_says_what_was_measured_and_what_to_do_first(as_viewer, operator):
    data = making.processed(operator)
    job = making.training_job(data, metrics={"expert_load_max_over_mean": 2.5, "step": 100, "skipped_steps": 0}, status=Job.Status.SUCCEEDED)
    JobEvent.objects.bulk_create(JobEvent(job_id=job.pk, kind="step", data={"loss": 1.0}) for _ in range(50))
    version = making.version("v1", state="live", run=data.current_run)
    version.training_job = job
    version.save()
    making.evaluated(version, data.current_run.evaluation_sets.get(), refusal_rate=0.5)

    body = as_viewer.get("/api/v1/advisor/tuning/").json()

    found = {r["finding"]: r for r in body["recommendations"]}
    assert body["version_name"] == "v1"
    assert any("2.50 × the mean load" in finding for finding in found)
    assert any("refuses 50 %" in finding for finding in found)
    assert any("fell by 0.0 %" in finding for finding in found)
    assert next(r for r in body["recommendations"] if r["action"] == "compress:int8")["severity"] == "consider"
    assert [r["order"] for r in body["recommendations"]] == list(range(1, len(found) + 1))
    assert all(r["advice"] and r["why"] for r in body["recommendations"])


def test_without_a_version_there_is_nothing_to_tune(as_viewer):
    assert as_viewer.get("/api/v1/advisor/tuning/").json() == {"version": None, "version_name": None, "recommendations": []}


def test_a_version_that_was_never_evaluated_is_to_be_evaluated_first(as_viewer):
    making.version("v1")

    first = as_viewer.get("/api/v1/advisor/tuning/?version=v1").json()["recommendations"][0]

    assert (first["severity"], first["action"]) == ("act", "evaluate")


def test_the_minute_that_has_just_ended_is_in_the_long_windows_before_it_is_rolled_up(as_viewer, now):
    second = now // 60 * 60 - 1  # the last second of the minute before this one
    connection().hset(names.SECOND.format(second=second), mapping={"v|n": 3, "v|200": 3})

    assert sum(p["requests"] for p in points(as_viewer, "window=86400&step=60")) == 3
