"""The P99 alert, from real observations in Redis: it waits, fires, and clears."""

import re
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.utils import timezone
from django.utils.translation import override

from apps.monitoring import recorder
from apps.monitoring.alerting import evaluate_alerts
from apps.monitoring.models import Alert
from apps.monitoring.rules import ERRORS, P99, QUEUE
from apps.monitoring.tally import tally
from apps.portal.retelling import retold
from apps.redis import connection

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def one_moment(monkeypatch) -> None:
    """Answers are counted and judged in one second: none leaves the window of fifteen while a test is at work."""
    at = time.time()
    for module in ("tally", "rules"):
        monkeypatch.setattr(f"apps.monitoring.{module}.time", SimpleNamespace(time=lambda: at, sleep=time.sleep))


def answer_in(latency_ms: float, times: int = 20) -> None:
    for _ in range(times):
        recorder.observe(version="v", route="generate", latency_ms=latency_ms)
    tally.write()


def let_pass(field: str) -> None:
    """As if the rule's patience had run out since."""
    earlier = timezone.now() - timedelta(seconds=P99.for_seconds + 1)
    assert Alert.objects.filter(rule=P99.name).update(**{field: earlier}) == 1


def the_alert() -> Alert:
    return Alert.objects.get(rule=P99.name)


def test_slow_answers_fire_the_alert_only_after_its_patience():
    answer_in(900)
    evaluate_alerts()
    evaluate_alerts()
    assert the_alert().state == Alert.State.PENDING

    let_pass("started_at")
    evaluate_alerts()

    fired = the_alert()
    assert fired.state == Alert.State.FIRING and fired.value == pytest.approx(900, rel=0.02)


def test_quick_answers_clear_a_firing_alert_and_not_at_once():
    answer_in(900)
    evaluate_alerts()
    let_pass("started_at")
    evaluate_alerts()

    connection().flushdb()  # the slow seconds have left the window
    answer_in(20)
    evaluate_alerts()
    assert the_alert().state == Alert.State.FIRING
    let_pass("resolved_at")
    evaluate_alerts()

    assert the_alert().state == Alert.State.RESOLVED


def test_a_short_peak_tells_nobody():
    answer_in(900)
    evaluate_alerts()
    connection().flushdb()
    answer_in(20)
    evaluate_alerts()

    assert not Alert.objects.filter(rule=P99.name).exists()  # this machine's disk may have an alert of its own


@pytest.mark.parametrize(("rule", "value", "said"), [
    (ERRORS, 0.25, "25.0 % of the requests fail, more than 5 %."), (QUEUE, 0.9, "The queue is 90 % full;"), (P99, 812.3, "P99 latency is 812 ms, above 500 ms."),
])  # fmt: skip
def test_a_message_writes_its_figures_as_pages_do_in_either_language(rule, value, said):
    assert rule.said(value).startswith(said)
    with override("zh-hans"):
        told = retold(rule.said(value))
    assert told != rule.said(value)
    assert all(figure in told for figure in re.findall(r"\d+(?:\.\d+)?(?: %)?", said))
