"""What beat asks for every few seconds."""

from apps.demonstration.services import advance
from apps.jobs.services import reap
from apps.monitoring.services import evaluate_alerts, roll_up
from apps.serving.autoscaler import scale
from dsportal.celery import app


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


@app.task(name="dsportal.beat.scale", ignore_result=True)
def follow_load() -> None:
    scale()
