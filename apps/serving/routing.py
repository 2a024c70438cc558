"""Which version answers: the one asked for, the arm of the running experiment, or the live one."""

import hashlib
from dataclasses import dataclass

from django.utils.translation import gettext as _

from apps.accounts.problems import Missing, Unavailable
from apps.experiments.models import Experiment
from apps.registry.models import ModelVersion

LIVE_NAMES = ("dsportal", "live", "default")  # whatever is live, or the arm of the running experiment


@dataclass(frozen=True)
class Route:
    version: ModelVersion
    experiment: Experiment | None = None
    arm: str = ""


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


def route(*, asked: str | None, subject: str) -> Route:
    """`subject` is what an experiment keeps together: the conversation, or the user where there is none."""
    if asked and asked not in LIVE_NAMES:
        return Route(find_version(asked))
    experiment = Experiment.objects.select_related("control", "treatment").filter(status=Experiment.Status.RUNNING).first()
    if experiment:
        arm = arm_of(experiment, subject)
        return Route(getattr(experiment, arm), experiment, arm)
    live = ModelVersion.objects.filter(state=ModelVersion.State.LIVE).first()
    if live is None:
        raise Unavailable(_("No version is live yet. The home page tells how long the first one will take."))
    return Route(live)
