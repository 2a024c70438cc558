"""The `inference` worker: questions from the line go to the process's engines, many at a time, and what these say to Redis.

A part of Celery's own worker (a bootstep): it begins and ends with it, and a worker that is told to end answers first what it has.
"""

import logging
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from celery import bootsteps, signals
from django.conf import settings
from django.db import close_old_connections
from redis import RedisError

from apps.monitoring.presence import keep_presence
from apps.serving.line import Asked, Window
from dsportal.celery import app
from workers.tasks.cancelling import cancellations
from workers.tasks.engines import Engines
from workers.tasks.following import follow, load_first
from workers.tasks.making import Making
from workers.tasks.telling import Telling

log = logging.getLogger(__name__)

WORKER = f"inference@{socket.gethostname()}:{os.getpid()}"
TAKE_SECONDS = 1.0
KEEP_SECONDS = 1.0
RECONNECT_SECONDS = 0.5
# For so long a thread may keep the interpreter from others. Python's 5 ms are longer than a forward: the engine would wait as long again after each.
SWITCH_SECONDS = 0.0005

engines = Engines(settings.MAX_ENGINES, settings.ENGINES_BYTES)


class Answering:
    """At most so many answers at once. What is taken from the line is at hand until its end is told."""

    def __init__(self, most: int):
        self._most = most
        self._window = Window(WORKER)
        self._at_hand: dict[str, Making] = {}  # by their answers' ids
        self._changed = threading.Condition()
        self._closing = threading.Event()

    def start(self) -> None:
        self._telling = Telling(self._window, self._over)
        self._slowly = ThreadPoolExecutor(self._most, "begin")
        self._taking = threading.Thread(target=self._take, name="taking", daemon=True)
        self._taking.start()
        threading.Thread(target=self._keep, name="keeping", daemon=True).start()

    def close(self) -> None:
        """Take no more."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """Once what is at hand is answered."""
        self._taking.join()
        with self._changed:
            self._changed.wait_for(lambda: not self._at_hand)
        self._telling.close()
        try:
            self._window.close()
        except RedisError as error:
            log.warning("the line keeps this worker's name: %s", error)

    def _take(self) -> None:
        is_open = False
        while not self._closing.is_set():
            with self._changed:
                self._changed.wait_for(lambda: len(self._at_hand) < self._most or self._closing.is_set())
                room = self._most - len(self._at_hand)
            try:
                if not is_open:
                    self._window.open()
                    is_open = True
                if room and (found := self._window.take(room, TAKE_SECONDS)):
                    self._begin(found)
            except RedisError as error:
                log.warning("no question can be taken: %s", error)
                time.sleep(RECONNECT_SECONDS)

    def _begin(self, found: list[Asked]) -> None:
        new = {}
        with self._changed:
            for asked in found:
                if known := self._at_hand.get(asked.answer):
                    known.numbers.append(asked.number)
                else:
                    new[asked.answer] = self._at_hand[asked.answer] = Making(asked, self._telling.hear)
        try:
            cancellations.add(new)
        except RedisError as error:
            log.warning("whether askers have gone already cannot be seen: %s", error)
        for making in new.values():
            try:
                if making.is_cancelled or making.asked.deadline < time.time():
                    making.drop()
                elif held := engines.take_loaded(making.asked.version) if making.is_quick else None:
                    self._submit(making, held)
                else:
                    self._slowly.submit(self._load, making)
            except Exception as error:  # noqa: BLE001 — a question that cannot be understood ends by itself
                making.fail(error)

    def _load(self, making: Making) -> None:
        close_old_connections()
        began = time.time_ns()
        try:
            held = engines.take(making.asked.version, making.ends)
        except Exception as error:  # noqa: BLE001 — whatever is wrong with the version, its asker is told
            making.fail(error)
        else:
            making.phases.loaded(began)
            self._submit(making, held)
        finally:
            close_old_connections()

    @staticmethod
    def _submit(making: Making, held) -> None:
        try:
            making.begin(held)
        except Exception as error:  # noqa: BLE001 — its asker is told
            making.fail(error)

    def _over(self, making: Making) -> None:
        if making.held:
            engines.give_back(making.held)
        making.tell_phases(WORKER)
        cancellations.remove(making.asked.answer)
        with self._changed:
            del self._at_hand[making.asked.answer]
            self._changed.notify_all()

    def _keep(self) -> None:
        """Every second: say that the answers at hand are being made, and look for those whose workers are silent."""
        while not (self._closing.is_set() and not self._at_hand):
            with self._changed:
                at_hand = list(self._at_hand.values())
            for making in at_hand:
                making.speak_up()
            try:
                self._window.keep([number for making in at_hand for number in making.numbers])
                room = 0 if self._closing.is_set() else self._most - len(at_hand)
                if room > 0 and (found := self._window.take_over(room)):
                    log.warning("%d questions are taken over from a worker that is silent", len(found))
                    self._begin(found)
            except RedisError as error:
                log.warning("answers at hand cannot be kept: %s", error)
            time.sleep(KEEP_SECONDS)


class AnsweringStep(bootsteps.StartStopStep):
    """Of workers on the queue `inference`; as many answers at once as the worker's concurrency says."""

    requires = ("celery.worker.components:Pool",)

    def include_if(self, worker) -> bool:
        return "inference" in worker.app.amqp.queues.consume_from

    def create(self, worker) -> Answering:
        return Answering(worker.concurrency)

    def close(self, worker) -> None:
        if self.obj:
            self.obj.close()


app.steps["worker"].add(AnsweringStep)


def _keep_counting() -> None:
    while True:
        try:
            engines.count()
        except RedisError as error:
            log.warning("what the engines do cannot be counted: %s", error)
        time.sleep(KEEP_SECONDS)


@signals.worker_init.connect
def _begin(sender, **_):
    if "inference" in sender.hostname:
        load_first(engines)


@signals.worker_ready.connect
def _ready(sender, **_):
    if "inference" in sender.hostname:
        sys.setswitchinterval(SWITCH_SECONDS)
        keep_presence("inference", WORKER)
        threading.Thread(target=_keep_counting, name="counting", daemon=True).start()
        follow(engines, WORKER)


@signals.worker_shutdown.connect
def _shutdown(**_):
    cancellations.close()
    engines.close()
