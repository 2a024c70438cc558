"""Ctrl-K: what a few typed letters may mean. Pages and actions from a list, rows from the database."""

from dataclasses import dataclass, field

from django.db.models import Q
from django.urls import reverse
from django.utils.translation import gettext as _

from apps.accounts.models import User
from apps.datasets.models import Dataset
from apps.experiments.models import Experiment
from apps.jobs.models import Job
from apps.portal.context import stations_and_keys
from apps.portal.loop import page_of_job
from apps.portal.retelling import retold
from apps.registry.models import ModelVersion

ROWS_SHOWN = 6


@dataclass(frozen=True)
class Item:
    symbol: str
    label: str
    url: str
    hint: str = ""
    version: ModelVersion | None = None


@dataclass(frozen=True)
class Group:
    label: str
    items: list[Item] = field(default_factory=list)


def search(asked: str, user: User) -> list[Group]:
    """Groups of what fits; with nothing typed, the pages, the actions and the newest versions."""
    groups = [Group(_("Pages"), _pages(asked, user)), Group(_("Actions"), _actions(asked, user)), *_rows(asked)]
    return [group for group in groups if group.items]


def _fits(asked: str, *texts: str) -> bool:
    whole = " ".join(texts).casefold()
    return all(word in whole for word in asked.casefold().split())


def _pages(asked: str, user: User) -> list[Item]:
    found = [Item(place.name, str(place.label), reverse(place.name), f"g {place.key}") for place in stations_and_keys()]
    if user.may_administer:
        found.append(Item("users", _("Users"), reverse("users")))
    return [item for item in found if _fits(asked, item.label, item.symbol)]


def _actions(asked: str, user: User) -> list[Item]:
    found = [
        Item("chat", _("Ask a question"), reverse("chat")),
        Item("key", _("Make an API token"), reverse("api") + "#tokens"),
    ]
    if user.may_operate:
        found += [
            Item("upload", _("Upload text"), reverse("datasets") + "#upload"),
            Item("play", _("Start a training job"), reverse("training")),
            Item("compression", _("Compress a version"), reverse("compression")),
            Item("layers", _("Answer a batch"), reverse("batches")),
            Item("link", _("Connect a server's model"), reverse("upstreams")),
            Item("split", _("Plan an experiment"), reverse("experiments") + "#plan"),
            Item("star", _("Make a dataset of the new ratings"), reverse("feedback")),
        ]
    return [item for item in found if _fits(asked, item.label)]


def _rows(asked: str) -> list[Group]:
    versions = ModelVersion.objects.filter(Q(name__icontains=asked) | Q(pk__iexact=asked)) if asked else ModelVersion.objects.all()
    groups = [Group(_("Versions"), [
        Item("models", v.name, reverse("version", args=[v.pk]), f"{v.get_kind_display()}, {v.get_state_display()}", v) for v in versions[:ROWS_SHOWN]
    ])]  # fmt: skip
    if not asked:
        return groups
    datasets = Dataset.objects.filter(Q(name__icontains=asked) | Q(pk__iexact=asked))[:ROWS_SHOWN]
    jobs = Job.objects.select_related("processingrun", "evaluation").filter(Q(title__icontains=asked) | Q(pk__iexact=asked))[:ROWS_SHOWN]
    experiments = Experiment.objects.filter(Q(name__icontains=asked) | Q(pk__iexact=asked))[:ROWS_SHOWN]
    return [
        *groups,
        Group(_("Datasets"), [Item("datasets", d.name, reverse("dataset", args=[d.pk])) for d in datasets]),
        Group(_("Jobs"), [Item("worker", retold(j.title), page_of_job(j), j.get_status_display()) for j in jobs]),
        Group(_("Experiments"), [Item("experiments", e.name, reverse("experiment", args=[e.pk]), e.get_status_display()) for e in experiments]),
    ]
