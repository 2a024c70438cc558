"""Sending a message while the connection to the broker breaks."""

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from dsportal.celery import app


def breaking(monkeypatch, times: int) -> list[str]:
    """kombu as it was seen when Redis was killed in the middle of a hundred publications: its channel has lost its connection."""
    sent: list[str] = []
    failures = iter(range(times))

    def send_task(self, name: str, **options) -> None:
        if next(failures, None) is not None:
            _ = None.client
        sent.append(name)

    monkeypatch.setattr(Celery, "send_task", send_task)
    return sent


def test_a_channel_without_a_connection_is_tried_again(monkeypatch):
    sent = breaking(monkeypatch, times=2)
    app.send_task("dsportal.embed")
    assert sent == ["dsportal.embed"]


def test_a_broker_that_stays_away_is_an_outage(monkeypatch):
    breaking(monkeypatch, times=99)
    with pytest.raises(OperationalError):
        app.send_task("dsportal.embed")


def test_a_fault_of_ours_is_none_of_the_broker(monkeypatch):
    monkeypatch.setattr(Celery, "send_task", lambda self, name, **options: name.nothing)
    with pytest.raises(AttributeError):
        app.send_task("dsportal.embed")
