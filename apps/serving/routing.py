"""Which version answers: the one asked for, the arm of the running experiment, or the live one."""

import hashlib
import time
from dataclasses import dataclass
from typing import NamedTuple

from django.conf import settings
from django.utils.translation import gettext as _

from apps.accounts.problems import Missing, Unavailable
from apps.experiments.models import Experiment
from apps.registry.models import ModelVersion
from apps.serving.epoch import current as current_epoch

LIVE_NAMES = ("dsportal", "live", "default")  # whatever is live, or the arm of the running experiment


@dataclass(frozen=True)
class Route:
    version: ModelVersion
    experiment: Experiment | None = None
    arm: str = ""
    epoch: str | None = None  # in which it was found


class Serving(NamedTuple):
    """What is live, and the running experiment, as they were in an epoch."""

    epoch: str | None
    until: float  # of `time.monotonic`
    live: ModelVersion | None
    experiment: Experiment | None


class Named(NamedTuple):
    """A version that was asked for by its id or name, as it was in an epoch."""

    epoch: str
    until: float  # of `time.monotonic`
    version: ModelVersion


_serving = Serving(None, 0.0, None, None)
_named: dict[str, Named] = {}  # by what they were asked for by
MOST_NAMED = 100


def arm_of(experiment: Experiment, subject: str) -> str:
    """The same arm for the same subject, for as long as the experiment lasts; independent between experiments."""
    digest = hashlib.sha256(f"{experiment.pk}:{subject}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "treatment" if share < experiment.split else "control"


def find_version(name: str) -> ModelVersion:
    # A name may look like an id only if somebody wants to be confused: the id wins.
    version = ModelVersion.objects.filter(pk=name).first() or ModelVersion.objects.filter(name=name).first()
    if version is None:
        raise Missing(_("There is no model version %(name)s; see /api/v1/model-versions/.") % {"name": repr(name)}, field="version")
    return version


def _remembered(name: str, epoch: str | None) -> ModelVersion:
    """As `find_version`, which takes a quarter of a request's time: for a moment from this process's memory, as what is live."""
    known = _named.get(name)
    if known and known.epoch == epoch and known.until > time.monotonic():
        return known.version
    found = find_version(name)
    if epoch is not None:
        if len(_named) >= MOST_NAMED:
            _named.clear()
        _named[name] = Named(epoch, time.monotonic() + settings.ROUTES_KEPT_SECONDS, found)
    return found


def route(*, asked: str | None, subject: str, epoch: str | None = None) -> Route:
    """`subject` is what an experiment keeps together: the conversation, or the user where there is none. `epoch`: where this request knows it already."""
    if asked and asked not in LIVE_NAMES:
        return Route(_remembered(asked, epoch := epoch or current_epoch()), epoch=epoch)
    now = serving_now(epoch or current_epoch())
    if now.live is None and now.experiment is None:
        raise Unavailable(_("No version is live yet. The home page tells how long the first one will take."))
    return _way(now, subject)


def remembered_route(*, asked: str | None, subject: str) -> Route | None:
    """The way of `route` as this process remembers it, good for as long as its epoch is not over; None where it does not."""
    known = _serving
    if (asked and asked not in LIVE_NAMES) or known.epoch is None or known.until < time.monotonic() or known.live is None:
        return None
    return _way(known, subject)


def _way(now: Serving, subject: str) -> Route:
    if now.experiment:
        arm = arm_of(now.experiment, subject)
        return Route(getattr(now.experiment, arm), now.experiment, arm, now.epoch)
    return Route(now.live, epoch=now.epoch)


def serving_now(epoch: str | None) -> Serving:
    """From this process's memory as long as the epoch is the same, and no longer than a moment: rows may change by other ways too."""
    global _serving  # noqa: PLW0603 — one thing, replaced whole
    known = _serving
    if epoch is None or known.epoch != epoch or known.until < time.monotonic() or known.live is None:
        experiment = Experiment.objects.select_related("control", "treatment").filter(status=Experiment.Status.RUNNING).first()
        live = ModelVersion.objects.filter(state=ModelVersion.State.LIVE).first()
        known = _serving = Serving(epoch, time.monotonic() + settings.ROUTES_KEPT_SECONDS, live, experiment)
    return known
