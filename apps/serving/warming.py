"""Versions are loaded before they are asked: a promotion waits until each inference worker holds the version, and then takes effect.

A worker says which versions it holds; whoever promotes asks for one, and reads what the workers say of it.
"""

import json
import logging
import time

import redis
from django.utils.translation import gettext as _

from apps.accounts.problems import Conflict
from apps.experiments.models import Experiment
from apps.monitoring import names
from apps.redis import connection
from apps.registry.models import ModelVersion

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 30.0  # then it goes live all the same, and its first answers wait
ASKED_SECONDS = 60  # a version that was asked for is wanted so long
SAID_SECONDS = 10.0  # what a worker says holds so long
POLL_SECONDS = 0.05


# -- whoever promotes


def warm(*versions: ModelVersion) -> None:
    """Wait until every inference worker holds these versions. Conflict where one cannot load them: it would go live and not answer."""
    ids, asked = [version.pk for version in versions], time.time()
    try:
        _ask_for(ids)
        while time.time() < asked + PATIENCE_SECONDS:
            said = {version: _said_since(version, asked) for version in ids}
            if failures := [why for answers in said.values() for why in answers.values() if why]:
                raise Conflict(_("An inference worker cannot load it: %(why)s") % {"why": failures[0]})
            if all(_followers() <= answers.keys() for answers in said.values()):
                return
            time.sleep(POLL_SECONDS)
    except redis.RedisError as error:
        log.warning("no inference worker could be asked to load a version: %s", error)
        return
    log.warning("not all inference workers have loaded %s in time; their first answers will wait", ids)


def _ask_for(ids: list[str]) -> None:
    pipe = connection().pipeline()
    pipe.zadd(names.ENGINES_WANTED, dict.fromkeys(ids, time.time() + ASKED_SECONDS))
    pipe.zremrangebyscore(names.ENGINES_WANTED, "-inf", time.time())
    pipe.publish(names.ENGINES_ASKED, json.dumps(ids))
    pipe.execute()


def _followers() -> set[str]:
    return set(connection().zrangebyscore(names.ENGINES_FOLLOWERS, time.time() - SAID_SECONDS, "inf"))


def _said_since(version: str, asked: float) -> dict[str, str]:
    """Worker → what went wrong there, empty where nothing did."""
    found = {worker: json.loads(told) for worker, told in connection().hgetall(names.ENGINES_OPEN.format(version=version)).items()}
    return {worker: why for worker, (at, why) in found.items() if at >= asked}


# -- the inference workers


def wanted() -> list[str]:
    """The most important first."""
    live = ModelVersion.objects.filter(state=ModelVersion.State.LIVE).values_list("pk", flat=True)
    arms = Experiment.objects.filter(status=Experiment.Status.RUNNING).values_list("control", "treatment")
    asked = connection().zrangebyscore(names.ENGINES_WANTED, time.time(), "inf")
    return list(dict.fromkeys([*live, *(arm for both in arms for arm in both), *asked]))


def report_following(worker: str) -> None:
    connection().zadd(names.ENGINES_FOLLOWERS, {worker: time.time()})


def report(worker: str, loaded: dict[str, str]) -> None:
    """`loaded`: version → what went wrong, empty where it is there."""
    pipe = connection().pipeline()
    for version, why in loaded.items():
        key = names.ENGINES_OPEN.format(version=version)
        pipe.hset(key, worker, json.dumps([time.time(), why]))
        pipe.expire(key, int(SAID_SECONDS))
    pipe.zremrangebyscore(names.ENGINES_FOLLOWERS, "-inf", time.time() - SAID_SECONDS)
    pipe.execute()
