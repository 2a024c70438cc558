"""What the frame of every page shows: the stations with their counts, the workers, the person."""

from dataclasses import dataclass

import redis
from django.core.cache import cache
from django.db.models import Count, Value
from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext_lazy as _

from apps.datasets.models import Dataset
from apps.experiments.models import Experiment
from apps.feedback.models import Feedback
from apps.jobs.models import Job
from apps.monitoring.models import Alert
from apps.monitoring.selectors import workers
from apps.registry.models import ModelVersion

COUNTS_KEPT_SECONDS = 2


# What the scripts say, in the page's language.
SCRIPT_STRINGS = {
    "copied": _("Copied."),
    "copy_by_hand": _("Press Ctrl C to copy what is selected."),
    # xgettext:no-python-format
    "uploading": _("{percent} % sent, about {seconds} s left"),
    "checking": _("Sent. The file is being checked …"),
    "upload_failed": _("The upload was cut off. Nothing was kept; send it again."),
    "connection_lost": _("The portal cannot be reached; what you see is from {ago}. It is tried again by itself."),
    "chat_lost": _("The portal could not be reached. Ask again in a moment."),
    "chat_cut": _("The connection was lost in the middle of the answer. Your question is in the field again; ask again in a moment."),
    "chat_thanks": _("Thank you. The next version can learn from it."),
    "no_picture": _("This is no picture that can be read. Choose a PNG or JPEG."),
    "updated": _("updated {ago}"),
    "now": _("just now"),
    "seconds_ago": _("{n} s ago"),
    "minutes_ago": _("{n} min ago"),
    "hours_ago": _("{n} h ago"),
    "days_ago": _("{n} days ago"),
    "seconds": _("{n} s"),
    "minutes_seconds": _("{m} min {s} s"),
    "hours_minutes": _("{h} h {m} min"),
    "chart_failed": _("The figures could not be loaded. They are asked for again by themselves."),
    "theme_system": _("Colours: as the system"),
    "theme_light": _("Colours: light"),
    "theme_dark": _("Colours: dark"),
}


@dataclass(frozen=True)
class Place:
    """One link of the rail. `key` goes there after `g`."""

    name: str  # of the URL, and of the icon
    label: str
    key: str
    count: str = ""
    bad: bool = False


def shell(request: HttpRequest) -> dict:
    return {
        "rail": SimpleLazyObject(lambda: _rail(_counts())),
        "worker_count": SimpleLazyObject(lambda: _counts()["workers"]),
        "script_strings": SCRIPT_STRINGS,
    }


def _counts() -> dict:
    """Asked of the database once in a while, not by every page."""
    try:
        found = cache.get("shell")
        if found is None:
            found = _count()
            cache.set("shell", found, COUNTS_KEPT_SECONDS)
    except redis.RedisError:
        found = _count()
    return found


def _count() -> dict:
    """All counts in one query."""
    active = Job.objects.filter(status__in=(Job.Status.QUEUED, Job.Status.RUNNING))
    counted = dict(
        active.order_by()
        .values("kind")
        .annotate(n=Count("pk"))
        .values_list("kind", "n")
        .union(
            *(
                rows.order_by().annotate(what=Value(name)).values("what").annotate(n=Count("pk")).values_list("what", "n")
                for name, rows in (
                    ("datasets", Dataset.objects.all()),
                    ("versions", ModelVersion.objects.all()),
                    ("experiments", Experiment.objects.filter(status=Experiment.Status.RUNNING)),
                    ("ratings", Feedback.objects.filter(dataset=None)),
                    ("alerts", Alert.objects.filter(state=Alert.State.FIRING)),
                )
            ),
            all=True,
        )
    )
    try:
        alive = len(workers("jobs")) + len(workers("inference"))
    except redis.RedisError:
        alive = 0
    own = {name: counted.get(name, 0) for name in ("datasets", "versions", "experiments", "ratings", "alerts")}
    return {**own, "active": {kind: counted.get(kind, 0) for kind in Job.Kind.values}, "workers": alive}


def _rail(counts: dict) -> list[list[Place]]:
    def number(value: int) -> str:
        return f"{value:,}" if value else ""

    training = counts["active"].get(Job.Kind.TRAINING, 0)
    return [
        [Place("home", _("Home"), "h")],
        [
            Place("datasets", _("Datasets"), "d", number(counts["datasets"])),
            Place("training", _("Training"), "r", _("%(n)s running") % {"n": training} if training else ""),
            Place("models", _("Models"), "m", number(counts["versions"])),
            Place("compression", _("Compression"), "c", number(counts["active"].get(Job.Kind.COMPRESSION, 0))),
            Place("experiments", _("Experiments"), "e", number(counts["experiments"])),
            Place("chat", _("Chat"), "a"),
            Place("monitoring", _("Monitoring"), "o", number(counts["alerts"]), bool(counts["alerts"])),
            Place("feedback", _("Feedback"), "f", number(counts["ratings"])),
        ],
        [Place("advisor", _("Advisor"), "v"), Place("api", _("API"), "i"), Place("audit", _("Audit"), "u"), Place("help", _("Help"), "p")],
    ]


def stations_and_keys() -> list[Place]:
    """Every place with the key that goes there; for the help page and the palette."""
    empty = {"active": {}, "datasets": 0, "versions": 0, "experiments": 0, "alerts": 0, "ratings": 0}
    return [place for group in _rail(empty) for place in group]
