"""What the home page reads: one look at the rows of the loop, in a dozen queries whatever the number of rows."""

import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import redis
from django.db.models import Avg, Count, F, Q, Sum
from django.utils import timezone

from apps.accounts.models import AuditEntry
from apps.datasets.models import Dataset
from apps.demonstration import selectors as demonstrations
from apps.demonstration.models import Demonstration
from apps.experiments.models import Experiment
from apps.experiments.statistics import Interval, difference_p_value, mean_interval
from apps.feedback.models import Feedback
from apps.jobs.models import Job, JobEvent
from apps.monitoring.buckets import read_by_version
from apps.monitoring.histogram import percentile
from apps.monitoring.models import Alert
from apps.registry.models import Evaluation, GateDecision, ModelVersion
from apps.registry.selectors import versions as all_versions
from apps.serving.models import Answer

RECENT = timedelta(days=3)
RECENT_JOBS = 60
RECENT_VERSIONS = 12
RECENT_DATASETS = 20
TRAFFIC_SECONDS = 60
DEMONSTRATION_SHOWN_AFTER = timedelta(minutes=10)


@dataclass(frozen=True)
class Traffic:
    """The last minute's questions; None where Redis cannot be asked."""

    qps: float
    p99_ms: float | None


@dataclass(frozen=True)
class Trial:
    """The running experiment and how clear it is."""

    experiment: Experiment
    ratings: dict[str, Interval]
    p_value: float | None


@dataclass(frozen=True)
class Snapshot:
    datasets: list[Dataset]
    jobs: list[Job]  # newest first
    versions: list[ModelVersion]  # newest first, each with `finished` evaluations
    decisions: dict[str, GateDecision]  # the newest of each candidate
    trial: Trial | None
    alerts: list[Alert]
    ratings: dict
    traffic: Traffic | None
    audit: list[AuditEntry]
    requeued: list[JobEvent] = field(default_factory=list)
    demonstration: demonstrations.Progress | None = None

    @property
    def live(self) -> ModelVersion | None:
        return next((v for v in self.versions if v.state == ModelVersion.State.LIVE), None)

    def active(self, kind: str) -> Job | None:
        """The running job of a kind, else the one queued next."""
        found = [job for job in self.jobs if job.kind == kind and job.is_active]
        return min(found, key=lambda job: (job.status != Job.Status.RUNNING, job.pk), default=None)

    def waiting(self) -> list[tuple[ModelVersion, GateDecision]]:
        """Candidates whose gate has passed, best BLEU first."""
        passed = [(v, self.decisions[v.pk]) for v in self.versions if v.pk in self.decisions and self.decisions[v.pk].passed]
        return sorted(passed, key=lambda pair: -(bleu_of(pair[0]) or 0))


def bleu_of(version: ModelVersion | None, evaluation_set: str | None = None) -> float | None:
    evaluation = evaluation_of(version, evaluation_set)
    return evaluation.metrics.get("bleu") if evaluation else None


def evaluation_of(version: ModelVersion | None, evaluation_set: str | None = None) -> Evaluation | None:
    """The newest finished evaluation, or the one on a given set."""
    found = getattr(version, "finished", [])
    return next((e for e in found if evaluation_set in (None, e.evaluation_set_id)), None)


def snapshot() -> Snapshot:
    now = timezone.now()
    active = (Job.Status.QUEUED, Job.Status.RUNNING)
    jobs = list(
        Job.objects.select_related("processingrun", "trainingjob", "evaluation__model_version", "compressionjob__model_version").filter(
            Q(status__in=active) | Q(created_at__gt=now - RECENT)
        )[:RECENT_JOBS]
    )
    recent = ModelVersion.objects.order_by("-id").values("pk")[:RECENT_VERSIONS]
    versions = list(all_versions().filter(Q(pk__in=recent) | Q(state=ModelVersion.State.LIVE)))
    candidates = [v.pk for v in versions if v.state == ModelVersion.State.CANDIDATE]
    decisions: dict[str, GateDecision] = {}
    if candidates:
        for decision in GateDecision.objects.select_related("baseline").filter(model_version__in=candidates):
            decisions.setdefault(decision.model_version_id, decision)
    again = [job.pk for job in jobs if job.attempt > 1]
    return Snapshot(
        datasets=list(Dataset.objects.select_related("current_run")[:RECENT_DATASETS]),
        jobs=jobs,
        versions=versions,
        decisions=decisions,
        trial=_trial(),
        alerts=list(Alert.objects.filter(state=Alert.State.FIRING)),
        ratings=_ratings(),
        traffic=_traffic(),
        audit=list(AuditEntry.objects.filter(action__in=TOLD)[:10]),
        requeued=list(JobEvent.objects.filter(job__in=again, kind="requeued").select_related("job").order_by("-id")[:5]) if again else [],
        demonstration=_demonstration(now),
    )


TOLD = (
    "version.promote", "version.rollback", "version.promotion_refused", "experiment.start", "experiment.stop", "dataset.create", "user.create",
    "alert.acknowledge",
)  # fmt: skip


def _ratings() -> dict:
    new, low = Q(dataset=None), Q(dataset=None, rating__lte=2, correction="")
    return Feedback.objects.aggregate(mean=Avg("rating"), count=Count("id"), new=Count("id", filter=new), to_correct=Count("id", filter=low))


def _trial() -> Trial | None:
    experiment = Experiment.objects.select_related("control", "treatment").filter(status=Experiment.Status.RUNNING).first()
    if experiment is None:
        return None
    rated = Answer.objects.filter(experiment=experiment, feedback__isnull=False).order_by().values("arm")
    square = F("feedback__rating") * F("feedback__rating")
    sums = {row["arm"]: row for row in rated.annotate(n=Count("id"), total=Sum("feedback__rating"), squares=Sum(square))}
    ratings = {}
    for arm in ("control", "treatment"):
        row = sums.get(arm, {"n": 0, "total": 0, "squares": 0})
        ratings[arm] = mean_interval(row["n"], row["total"], row["squares"])
    return Trial(experiment, ratings, difference_p_value(ratings["control"], ratings["treatment"]))


def _traffic() -> Traffic | None:
    now = int(time.time())
    try:
        total = read_by_version(now - TRAFFIC_SECONDS, now - 1)[""]
    except redis.RedisError:
        return None
    return Traffic(total.requests / TRAFFIC_SECONDS, percentile(total.latency, 0.99))


def _demonstration(now: datetime) -> demonstrations.Progress | None:
    """While it runs, and for a while after it ended."""
    demo = demonstrations.current()
    if demo is None or (demo.status != Demonstration.Status.RUNNING and demo.finished_at and now - demo.finished_at > DEMONSTRATION_SHOWN_AFTER):
        return None
    return demonstrations.progress(demo)
