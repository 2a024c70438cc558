"""Whoever is to be told of an alert is told, once, also where the first try fails; a silence keeps them asleep."""

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from django.core import mail
from django.utils import timezone

from apps.feedback.models import Feedback
from apps.monitoring import alerting, drift, rules
from apps.monitoring.models import Alert, MetricMinute, Notice
from apps.monitoring.notifying import NotTold, notify
from tests.apps import making
from workers.tasks import beat

pytestmark = pytest.mark.django_db


class Hook:
    """A webhook that keeps what it is sent, and fails as often as it is told to."""

    def __init__(self):
        self.received: list[dict] = []
        self.failures = 0
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                ok = hook.failures <= 0
                hook.failures -= 1
                if ok:
                    hook.received.append(body)
                self.send_response(200 if ok else 503)
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    yield hook
    hook.server.shutdown()


@pytest.fixture
def firing() -> Alert:
    return Alert.objects.create(
        rule="p99_latency", state="firing", value=900, threshold=500, message="P99 latency is 900 ms.", fired_at=timezone.now()
    )


def test_a_webhook_and_an_address_are_told_what_and_where(firing, hook, settings):
    settings.ALERT_WEBHOOKS, settings.ALERT_EMAILS, settings.PUBLIC_URL = [hook.url], ["ops@example.com"], "https://portal.example.com"
    assert notify(firing, []) == ["webhook 1", "e-mail"]
    (body,) = hook.received
    assert "P99 latency is 900 ms." in body["text"]
    assert "https://portal.example.com/monitoring/" in body["text"]
    assert (body["alert"]["rule"], body["alert"]["state"], body["alert"]["value"]) == ("p99_latency", "firing", 900)
    assert mail.outbox[0].to == ["ops@example.com"]


def test_a_mistyped_address_keeps_nobody_else_from_being_told(firing, hook, settings):
    settings.ALERT_WEBHOOKS, settings.ALERT_EMAILS = ["http://hooks:eighty/", hook.url], ["ops@example.com"]
    with pytest.raises(NotTold, match=r"webhook 1 \(InvalidURL\)") as failed:
        notify(firing, [])
    assert failed.value.args[1] == ["webhook 2", "e-mail"]
    assert len(hook.received) == len(mail.outbox) == 1


def test_who_was_not_reached_is_tried_again_and_nobody_else(firing, hook, settings):
    settings.ALERT_WEBHOOKS, settings.ALERT_EMAILS = [hook.url], ["ops@example.com"]
    hook.failures = 1
    with pytest.raises(NotTold) as failed:
        notify(firing, [])
    assert failed.value.args[1] == ["e-mail"]
    notify(firing, failed.value.args[1])
    assert len(hook.received) == 1
    assert len(mail.outbox) == 1


def over(rule: rules.AlertRule, monkeypatch, value: float) -> None:
    monkeypatch.setattr(alerting, "RULES", (rules.AlertRule(rule.name, rule.threshold, 0, rule.message, lambda: value, rule.promql),))


def judged(monkeypatch, value: float) -> None:
    """Beat's round, twice: once to notice, and once as the rule has no patience."""
    over(rules.P99, monkeypatch, value)
    for _ in range(2):
        alerting.evaluate_alerts()
        alerting.tell_due()


def states(hook: Hook) -> list[str]:
    return [body["alert"]["state"] for body in hook.received]


def test_it_is_told_once_when_an_alert_fires_and_once_when_it_is_over(monkeypatch, hook, settings):
    settings.ALERT_WEBHOOKS = [hook.url]
    for value in (900, 900, 20, 20):
        judged(monkeypatch, value)

    assert states(hook) == ["firing", "resolved"]


def test_a_failing_address_is_tried_again_later_and_later_until_it_hears_once(monkeypatch, hook, settings):
    settings.ALERT_WEBHOOKS, hook.failures = [hook.url], 2
    judged(monkeypatch, 900)
    alerting.tell_due()  # at once it is not tried again
    waits = []
    for _ in range(4):
        row = Notice.objects.get()
        if row.due_at:
            waits.append(round((row.due_at - timezone.now()).total_seconds()))
            Notice.objects.update(due_at=timezone.now())
        alerting.tell_due()

    assert waits == [5, 10]
    assert states(hook) == ["firing"]


def test_whoever_cannot_be_reached_is_given_up_some_day(monkeypatch, hook, settings):
    settings.ALERT_WEBHOOKS, hook.failures = [hook.url], 99
    judged(monkeypatch, 900)
    while Notice.objects.filter(due_at=None).count() == 0:
        Notice.objects.update(due_at=timezone.now())
        alerting.tell_due()

    assert 99 - hook.failures == Notice.objects.get().tries == alerting.MOST_TRIES


@pytest.mark.parametrize("rule", ["p99_latency", ""])
def test_a_silence_keeps_them_asleep_until_it_ends_before_the_alert_does(rule, admin, monkeypatch, hook, settings):
    settings.ALERT_WEBHOOKS = [hook.url]
    row = alerting.silence(rule=rule, minutes=10, actor=admin)
    judged(monkeypatch, 900)
    assert (states(hook), Alert.objects.get().state) == ([], "firing")

    alerting.end_silence(row=row, actor=admin)
    judged(monkeypatch, 900)
    judged(monkeypatch, 20)
    assert states(hook) == ["firing", "resolved"]


def test_what_came_and_went_in_silence_is_not_told_later(admin, monkeypatch, hook, settings):
    settings.ALERT_WEBHOOKS = [hook.url]
    row = alerting.silence(rule="", minutes=10, actor=admin)
    judged(monkeypatch, 900)
    over(rules.P99, monkeypatch, 20)
    alerting.evaluate_alerts()
    alerting.end_silence(row=row, actor=admin)
    alerting.evaluate_alerts()
    alerting.tell_due()

    assert (states(hook), Alert.objects.get().state) == ([], "resolved")


def test_silences_by_rest_and_by_the_page(as_operator, as_viewer, operator, client, firing):
    made = as_operator.post("/api/v1/silences/", {"rule": "p99_latency", "minutes": 30, "reason": "planned"})
    assert made.status_code == 201
    assert as_operator.post("/api/v1/silences/", {"rule": "no_such", "minutes": 30}).status_code == 400
    assert as_viewer.post("/api/v1/silences/", {"minutes": 30}).status_code == 403
    client.force_login(operator)
    assert "planned" in client.get("/monitoring/").content.decode()
    assert as_operator.delete(f"/api/v1/silences/{made.json()['id']}/").status_code == 204
    assert not alerting.silences().exists()
    client.post("/monitoring/silences/", {"rule": "p99_latency"})
    assert alerting.silences().get().rule == "p99_latency"


def test_errors_burn_the_budget_only_where_both_windows_say_so():
    now = timezone.now().replace(second=0, microsecond=0)
    for minute in range(1, 61):
        MetricMinute.objects.create(version="", minute=now - timedelta(minutes=minute), requests=10, errors=3 if minute > 10 else 0)
    assert rules.burn_rate(60, 5) == pytest.approx(0)  # it was so, and is over
    MetricMinute.objects.filter(minute__gte=now - timedelta(minutes=5)).update(errors=2)
    assert rules.burn_rate(60, 5) == pytest.approx(0.2 / 0.01, rel=0.1)
    MetricMinute.objects.update(requests=0, errors=0)
    assert rules.burn_rate(60, 5) is None


def test_falling_ratings_are_noticed_and_noise_is_not(viewer):
    version = making.version("v1", state="live")

    def rate(ratings):
        for rating in ratings:
            Feedback.objects.create(answer=making.answer(version, user=viewer), rating=rating, user=viewer)

    rate([4, 5, 3, 4] * 25)
    assert abs(drift.rating_drop()) < 3
    rate([2, 1, 3, 2, 2] * 10)
    assert drift.rating_drop() > 3


def test_a_webhook_that_hangs_holds_up_no_other_round_and_is_told_once_at_a_time(monkeypatch):
    begun, hangs = [], threading.Event()
    monkeypatch.setattr(beat, "tell_due", lambda: (begun.append(1), hangs.wait(60)))

    beat.judge_alerts()
    beat.judge_alerts()

    hangs.set()
    with beat._telling:  # the first gives it back
        assert len(begun) == 1
