"""What beat asks for every few seconds."""

import threading

from django.db import close_old_connections

from apps.demonstration.services import advance
from apps.jobs.services import reap
from apps.monitoring.alerting import evaluate_alerts, tell_due
from apps.monitoring.rollups import roll_up
from apps.serving.answer_log import forget_old, settle
from apps.serving.autoscaler import scale
from dsportal.celery import app

_telling = threading.Lock()


@app.task(name="dsportal.beat.reap", ignore_result=True)
def reap_lost_jobs() -> None:
    reap()
    advance()


@app.task(name="dsportal.beat.roll_up", ignore_result=True)
def roll_up_metrics() -> None:
    roll_up()


@app.task(name="dsportal.beat.alerts", ignore_result=True)
def judge_alerts() -> None:
    evaluate_alerts()
    if _telling.acquire(blocking=False):
        threading.Thread(target=_tell, daemon=True).start()  # a webhook that hangs holds up no other round


def _tell() -> None:
    try:
        tell_due()
    finally:
        close_old_connections()
        _telling.release()


@app.task(name="dsportal.beat.settle", ignore_result=True)
def write_answers_down() -> None:
    settle()


@app.task(name="dsportal.beat.forget", ignore_result=True)
def forget_old_answers() -> None:
    forget_old()


@app.task(name="dsportal.beat.scale", ignore_result=True)
def follow_load() -> None:
    scale()
