"""How far the demonstration is, and how long it will still take."""

from dataclasses import dataclass

from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _

from apps.demonstration.models import Demonstration
from apps.jobs.models import Job
from apps.registry.models import Evaluation

# Seconds each stage takes on two cores, measured; used only for stages that have not begun.
_EXPECTED = {"process": 7.0, "train": 50.0, "evaluate": 3.0, "train_again": 105.0, "evaluate_again": 4.0, "compress": 8.0, "evaluate_small": 4.0}


@dataclass(frozen=True)
class Stage:
    name: str
    label: str
    status: str  # waiting, or a job's status
    progress: float
    eta_seconds: float


@dataclass(frozen=True)
class Progress:
    demonstration: Demonstration
    stages: list[Stage]

    @property
    def eta_seconds(self) -> float:
        return sum(stage.eta_seconds for stage in self.stages)

    @property
    def first_live_eta_seconds(self) -> float:
        """Until the first version answers in the chat."""
        return sum(stage.eta_seconds for stage in self.stages[:3])

    @property
    def progress(self) -> float:
        total = sum(_EXPECTED.values())
        return sum(_EXPECTED[stage.name] * stage.progress for stage in self.stages) / total

    @property
    def elapsed_seconds(self) -> float:
        return ((self.demonstration.finished_at or timezone.now()) - self.demonstration.created_at).total_seconds()


def current() -> Demonstration | None:
    return Demonstration.objects.select_related("run", "first_job", "second_job", "compression").first()


def progress(demo: Demonstration) -> Progress:
    evaluations = _evaluations(demo)
    jobs = {
        "process": demo.run,
        "train": demo.first_job,
        "evaluate": evaluations.get(demo.first_job_id),
        "train_again": demo.second_job,
        "evaluate_again": evaluations.get(demo.second_job_id),
        "compress": demo.compression,
        "evaluate_small": evaluations.get(demo.compression_id),
    }
    labels = {
        "process": _("Clean and de-duplicate the text"),
        "train": _("Train version 1"),
        "evaluate": _("Evaluate it and put it live"),
        "train_again": _("Train version 2 from it"),
        "evaluate_again": _("Evaluate version 2"),
        "compress": _("Compress version 2 to INT8"),
        "evaluate_small": _("Evaluate the INT8 version"),
    }
    return Progress(demo, [_stage(name, labels[name], job) for name, job in jobs.items()])


def _evaluations(demo: Demonstration) -> dict[str, Evaluation]:
    """The job that made a version → that version's first evaluation, in one query."""
    trained = [pk for pk in (demo.first_job_id, demo.second_job_id) if pk]
    made = Q(model_version__training_job__in=trained) | Q(
        model_version__compression_job=demo.compression_id, model_version__compression_job__isnull=False
    )
    found: dict[str, Evaluation] = {}
    for evaluation in Evaluation.objects.filter(made).select_related("model_version").order_by("id"):
        version = evaluation.model_version
        found.setdefault(version.compression_job_id or version.training_job_id, evaluation)
    return found


def _stage(name: str, label: str, job: Job | None) -> Stage:
    if job is None:
        return Stage(name, label, "waiting", 0.0, _EXPECTED[name])
    if job.status == Job.Status.SUCCEEDED:
        return Stage(name, label, job.status, 1.0, 0.0)
    if not job.is_active:
        return Stage(name, label, job.status, job.progress, 0.0)
    left = job.eta_seconds if job.eta_seconds is not None else _EXPECTED[name] * (1 - job.progress)
    return Stage(name, label, job.status, job.progress, left)
