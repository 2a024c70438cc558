"""Charts of the traffic, alerts and the advisor, in the browser."""

import csv
import io
import time
from datetime import timedelta
from types import SimpleNamespace

import plotly.graph_objects as go
import pytest
from django.test import Client
from django.utils import timezone

from apps.monitoring import recorder
from apps.monitoring.models import Alert
from apps.monitoring.tally import tally
from apps.registry.models import ModelVersion
from apps.serving.models import Answer
from tests.apps import making


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


@pytest.fixture(autouse=True)
def ten_seconds_ago(monkeypatch) -> None:
    """All that is counted is counted in one second, so that it is one point of a chart; and in one ten seconds ago, however long a test takes: the charts
    leave out the point that is still young, and the long windows have the last two minutes' seconds only."""
    now = time.time()
    monkeypatch.setattr("apps.monitoring.tally.time", SimpleNamespace(time=lambda: now - 10, sleep=time.sleep))
    monkeypatch.setattr("apps.monitoring.selectors.time", SimpleNamespace(time=lambda: now))


def observe(version: ModelVersion, latency_ms: float, count: int = 1, **more) -> None:
    for _ in range(count):
        recorder.observe(version=version.pk, route="chat", latency_ms=latency_ms, **more)
    tally.write()


def refuse(count: int = 1) -> None:
    for _ in range(count):
        recorder.refuse(version="", route="chat", tenant="user")
    tally.write()


def told(version: ModelVersion, phases: dict[str, float]) -> None:
    """Seconds that requests were in each phase."""
    recorder.observe_phases(version=version.pk, route="chat", tenant="user", phases=phases.items())
    tally.write()


def text(response) -> str:
    return response.content.decode()


def charts(client: Client, query: str = "window=5m") -> dict:
    return client.get(f"/monitoring/charts/?{query}").json()["charts"]


def test_without_traffic_every_chart_says_a_word_or_shows_zero(reader, db):
    found = charts(reader)
    assert found["latency"]["empty"] == "No request in this window."
    assert set(found["qps"]["data"][0]["y"]) == {0}


def test_every_chart_is_valid_plotly_on_one_time_axis(reader, db):
    version = making.version("v1", state="live")
    for latency in (40.0, 60.0, 900.0):
        observe(version, latency, cached=latency == 40.0, first_token_ms=latency / 2)
    told(version, {"queue": 0.03, "prefill": 0.01, "decode": 0.3})
    Alert.objects.create(rule="p99_latency", state="firing", value=900, threshold=500, message="slow", fired_at=timezone.now())
    for window in ("5m", "1h", "24h", "7d", "1y"):
        found = {name: chart for name, chart in charts(reader, f"window={window}").items() if not chart["empty"]}
        assert set(found) == {"qps", "latency", "errors", "first_token", "phases", "tokens", "cache", "queue", "replicas"}
        for chart in found.values():
            go.Figure({"data": chart["data"], "layout": chart["layout"]})
        assert len({tuple(chart["layout"]["xaxis"]["range"]) for chart in found.values()}) == 1
        # All below each other but for the wide one, which has names at its bars' end.
        assert len({chart["layout"]["margin"]["r"] for name, chart in found.items() if name != "phases"}) == 1


def test_the_threshold_is_drawn_once_latency_comes_near_it(reader, db):
    version = making.version("v1")
    observe(version, 20.0)
    assert not charts(reader)["latency"]["layout"]["shapes"]  # of all versions; an answer is kept for a second
    observe(version, 700.0)
    assert charts(reader, f"window=5m&version={version.pk}")["latency"]["layout"]["shapes"][0]["y0"] == 500.0


def test_the_parts_of_a_request_stand_on_each_other_each_as_its_mean(reader, db):
    version, other = making.version("v1"), making.version("v2")
    observe(version, 100.0, count=2)
    told(version, {"queue": 0.04, "decode": 0.12})
    observe(other, 10.0)
    told(other, {"cache": 0.01})

    chart = charts(reader, f"window=5m&version={version.pk}")["phases"]
    assert {trace["name"]: [y for y in trace["y"] if y] for trace in chart["data"]} == {"Queue": [20.0], "Decode": [60.0]}
    assert chart["layout"]["barmode"] == "stack"
    assert chart["layout"]["yaxis"]["range"][1] > 80
    middles = {label["text"]: label["y"] for label in chart["layout"]["annotations"] if label["yref"] == "y"}
    assert middles == {"Queue": 10.0, "Decode": 50.0}
    assert chart["link"]
    assert {trace["name"] for trace in charts(reader)["phases"]["data"]} == {"Cache", "Queue", "Decode"}


def test_refusals_are_drawn_beside_the_errors_once_there_are_any(reader, db):
    version = making.version("v1")
    observe(version, 50.0, count=3)
    alone = charts(reader)["errors"]
    assert len(alone["data"]) == 1
    assert not [label for label in alone["layout"]["annotations"] if label["xanchor"] == "left"]
    refuse()

    chart = charts(reader, "window=1h")["errors"]  # an answer is kept for a second
    assert {trace["name"]: {y for y in trace["y"] if y is not None} for trace in chart["data"]} == {"Errors": {0}, "Refused (429)": {0.25}}
    assert [label["text"] for label in chart["layout"]["annotations"] if label["xanchor"] == "left"] == ["err", "429"]
    assert chart["table"]["head"] == ["Time", "Errors", "Refused (429)"]


def test_a_window_in_which_all_were_refused_is_no_quiet_one(reader, db):
    refuse(5)
    chart = charts(reader)["errors"]
    assert [y for y in chart["data"][1]["y"] if y] == [1.0]


def test_a_window_that_knows_no_phases_says_so(reader, db):
    observe(making.version("v1"), 100.0)
    assert charts(reader)["phases"]["empty"] == "No request in this window has told its phases."


def test_one_version_is_shown_in_its_own_colour_without_the_others(reader, db):
    one, other = making.version("v1"), making.version("v2")
    observe(one, 20.0)
    observe(other, 20.0, count=3)
    trace = charts(reader, f"window=5m&version={other.pk}")["qps"]["data"][0]
    assert sum(trace["y"]) == 1.5  # three in two seconds
    assert trace["line"]["color"] == f"var(--v-c{other.colour})"


def test_the_csv_holds_the_points_of_the_charts(reader, db):
    version = making.version("v1")
    observe(version, 50.0, cached=True)
    answer = reader.get("/monitoring/export.csv?window=5m")
    rows = list(csv.DictReader(io.StringIO(b"".join(answer.streaming_content).decode())))
    assert len(rows) == 150
    assert sum(int(row["requests"]) for row in rows) == 1
    busy = next(row for row in rows if row["requests"] == "1")
    assert float(busy["p99_ms"]) == pytest.approx(50.0, rel=0.02)
    assert float(busy["cache_hit_rate"]) == 1.0


def test_a_point_leads_to_the_slowest_requests_of_its_stretch(reader, operator):
    version = making.version("v1")
    old, slow, quick = (
        making.answer(version, operator, f"Question {name}?", latency_ms=ms) for name, ms in (("old", 800.0), ("slow", 700.0), ("quick", 20.0))
    )
    at = timezone.now() - timedelta(seconds=60)
    Answer.objects.filter(pk__in=[slow.pk, quick.pk]).update(created_at=at + timedelta(seconds=1))
    assert [a.pk for a in reader.get("/monitoring/?window=5m").context["slowest"]] == [old.pk, slow.pk, quick.pk]
    shown = reader.get("/monitoring/", {"window": "5m", "at": at.strftime("%Y-%m-%dT%H:%M:%SZ")}).context["slowest"]
    assert [a.pk for a in shown] == [slow.pk, quick.pk]


def test_a_mistyped_point_shows_the_whole_window(reader, operator):
    making.answer(making.version("v1"), operator)
    assert len(reader.get("/monitoring/?at=yesterday").context["slowest"]) == 1


def test_an_operator_acknowledges_an_alert_and_a_viewer_may_not(page, reader, operator):
    alert = Alert.objects.create(rule="p99_latency", state="firing", value=900, threshold=500, message="P99 is 900 ms.", fired_at=timezone.now())
    assert "Acknowledge" not in text(reader.get("/monitoring/"))
    assert reader.post(f"/monitoring/alerts/{alert.pk}/acknowledge/").status_code == 403
    answer = page.post(f"/monitoring/alerts/{alert.pk}/acknowledge/", HTTP_REFERER="http://testserver/monitoring/?window=5m")
    assert answer["Location"] == "http://testserver/monitoring/?window=5m"
    alert.refresh_from_db()
    assert alert.acknowledged_by == operator
    assert "seen by operator" in text(page.get("/monitoring/"))


def test_the_advisor_names_the_parts_of_the_memory_and_the_missions_case(reader, db):
    answer = reader.get("/advisor/?model=preset:moe-128b-a16b&gpus=1024&zero_stage=3&batch=1&sequence=512")
    advice = answer.context["advice"]
    assert advice.gpus == 1024
    assert "48 TB" in text(answer)
    assert {part.name for part in advice.parts} >= {"weights", "gradients", "optimizer", "activations"}


def test_a_question_the_advisor_cannot_answer_is_refused_at_its_field(reader, db):
    answer = reader.get("/advisor/?gpus=0")
    assert answer.status_code == 400
    assert 'id="id_gpus_error"' in text(answer)


def test_the_tuning_advisor_speaks_about_the_live_version_first(reader, db):
    assert "No version yet" in text(reader.get("/advisor/?tab=tuning"))
    making.version("v2")
    live = making.version("v1", state="live")
    answer = reader.get("/advisor/?tab=tuning")
    assert answer.context["version"] == live
    assert "It has never been evaluated." in text(answer)


def test_the_page_stays_within_twelve_queries(reader, operator, django_assert_max_num_queries):
    version = making.version("v1")
    for number in range(20):
        making.answer(version, operator, f"Question {number}?", latency_ms=number)
    with django_assert_max_num_queries(12):
        reader.get("/monitoring/")


def test_without_scripts_the_same_figures_are_tables_in_the_page(reader, db):
    observe(making.version("v1"), 50.0)
    assert "?tables=1" in text(reader.get("/monitoring/"))
    shown = text(reader.get("/monitoring/?window=5m&tables=1"))
    assert shown.count("<details open>") == 7
    assert '<th scope="col" class="n">P99</th>' in shown


def test_alerts_that_are_not_over_stand_above_those_that_are(reader, db):
    Alert.objects.create(rule="queue", state=Alert.State.FIRING, value=1, threshold=0.8, message="It still fires.", fired_at=timezone.now())
    for number in range(30):
        Alert.objects.create(rule="disk", state=Alert.State.RESOLVED, value=1, threshold=0.9, message=f"Over {number}.", fired_at=timezone.now())

    shown = text(reader.get("/monitoring/?fragment=now"))
    assert 0 < shown.find("It still fires.") < shown.find("Over 29.") < shown.find("Over 28.")
    assert "none firing" not in shown
