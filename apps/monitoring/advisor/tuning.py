"""What to change next about one version, by what was measured on it: `advise`. The order is that of effort against gain: serving
first (batching, caching), then quantization, and training only where quality falls short."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

from django.utils import timezone

from apps.jobs.models import JobEvent
from apps.monitoring.histogram import percentile
from apps.monitoring.models import MetricMinute
from apps.monitoring.services import P99
from apps.registry.gates import COMPRESSION_TOLERANCE, REQUIRED_GAIN, newest_evaluation
from apps.registry.models import CompressionJob, Evaluation, ModelVersion
from workers.compression.applicable import applicable

WINDOW = timedelta(hours=24)
FEW_REQUESTS = 50
GOOD_HIT_RATE = 0.4  # the mission's
GOOD_LOAD = 1.5  # the mission's: the fullest expert's load over the mean's
GOOD_REFUSALS, FEW_FALSE_ALARMS = 0.9, 0.1
FLAT = 0.02  # of the loss, gained over the last fifth of the training
WEAK_DOMAIN = 0.7  # of the whole set's BLEU
MIN_DOMAIN_QUESTIONS = 5
MAX_POINTS = 400


@dataclass(frozen=True)
class Recommendation:
    """One thing that was measured, and what follows. `severity`: act, consider, fine. `action`: what a page may offer as a button."""

    area: str  # serving, compression, training, quality, data
    severity: str
    finding: str
    figure: float | None
    unit: str
    threshold: float | None
    advice: str
    why: str
    action: str | None = None  # compress:int8, evaluate, train, …
    order: int = 0


def advise(version: ModelVersion) -> list[Recommendation]:
    """What was measured, most urgent first; within that, serving, compression, quality, training."""
    own = newest_evaluation(version)
    found = [*_serving(version), *_compression(version, own), *_quality(version, own), *_training(version)]
    urgency = ("act", "consider", "fine")
    found.sort(key=lambda r: urgency.index(r.severity))
    return [replace(r, order=number) for number, r in enumerate(found, start=1)]


# -- serving


def _serving(version: ModelVersion) -> Iterator[Recommendation]:
    requests = cached = 0
    latency: dict[int, int] = defaultdict(int)
    queue: list[float] = []
    since = timezone.now() - WINDOW
    for row in MetricMinute.objects.filter(version=version.pk, minute__gte=since):
        requests, cached = requests + row.requests, cached + row.cached
        for number, count in row.latency.items():
            latency[int(number)] += count
    queue = list(MetricMinute.objects.filter(version="", minute__gte=since).values_list("queue_depth", flat=True))
    if requests < FEW_REQUESTS:
        yield Recommendation(
            "serving", "fine", f"It answered {requests} requests in the last 24 hours.", requests, "requests", FEW_REQUESTS,
            "Nothing to say about its serving yet: send it traffic, or an experiment's share of it.", "A P99 of fewer than 50 requests is one request.",
        )  # fmt: skip
        return
    p99 = percentile(latency, 0.99)
    slow = p99 > P99.threshold
    yield Recommendation(
        "serving", "act" if slow else "fine", f"The P99 latency of the last 24 hours is {p99:.0f} ms.", p99, "ms", P99.threshold,
        "First let more requests share a step and start another inference worker; then serve an INT8 version." if slow else "Leave it as it is.",
        f"99th percentile of {requests:,} requests, from a histogram of 2 % bins; the alert's threshold is {P99.threshold:.0f} ms.",
    )  # fmt: skip
    rate = cached / requests
    yield Recommendation(
        "serving", "fine" if rate >= GOOD_HIT_RATE else "consider", f"{rate:.0%} of the requests were answered from the cache.", rate, "share", GOOD_HIT_RATE,
        "Leave it as it is." if rate >= GOOD_HIT_RATE else "Ask at temperature 0, with the same max_tokens everywhere, or give the cache more bytes (DSPORTAL_CACHE_BYTES).",
        "cached / requests. Only temperature 0 is kept, and every parameter is part of the key.",
    )  # fmt: skip
    if queue and (depth := sum(queue) / len(queue)) > 1:
        yield Recommendation(
            "serving", "consider", f"On average {depth:.1f} answers are waiting or being made.", depth, "answers", 1.0,
            "Start another inference worker: those that wait are latency.", "mean of the minutes' queue depth; by Little's law it is QPS · latency.",
        )  # fmt: skip


# -- compression


def _compression(version: ModelVersion, own: Evaluation | None) -> Iterator[Recommendation]:
    if version.is_compressed:
        yield from _against_parent(version, own)
        return
    children = list(ModelVersion.objects.filter(parent=version, compression_job__isnull=False).order_by("artifact_bytes"))
    small = next((child for child in children if child.kind == ModelVersion.Kind.INT8), None)
    if small is None:
        if applicable(version.kind, CompressionJob.Method.INT8) is None:
            yield Recommendation(
                "compression", "consider", f"It is {version.artifact_bytes / 1e6:,.1f} MB and has no INT8 version.", version.artifact_bytes, "bytes", None,
                "Quantize it first: it takes seconds and needs no training.",
                "INT8 keeps one byte and a scale for what FP32 keeps in four: about 74 % fewer bytes, and decoding is bound by reading them.",
                "compress:int8",
            )  # fmt: skip
        return
    theirs = newest_evaluation(small, own.evaluation_set) if own else None
    if theirs is None:
        yield Recommendation(
            "compression", "consider", f"{small.name} has not been evaluated on the same questions.", None, "", None, f"Evaluate {small.name}.",
            "Without it nobody knows what the smaller size costs.", "evaluate",
        )  # fmt: skip
        return
    lost = own.metrics["bleu"] - theirs.metrics["bleu"]
    good = lost <= COMPRESSION_TOLERANCE
    saved = 1 - small.artifact_bytes / version.artifact_bytes if version.artifact_bytes else 0.0
    yield Recommendation(
        "compression", "fine" if good else "consider", f"{small.name} saves {saved:.0%} of the bytes and loses {lost:+.1f} BLEU points.", lost, "BLEU points",
        COMPRESSION_TOLERANCE, f"Serve {small.name}." if good else "Quantization alone costs too much quality here: try pruning or distillation.",
        f"BLEU {own.metrics['bleu']:.1f} − {theirs.metrics['bleu']:.1f} on the same {own.metrics['questions']} questions; {COMPRESSION_TOLERANCE:g} point is allowed.",
        None if good else "compress:policy",
    )  # fmt: skip


def _against_parent(version: ModelVersion, own: Evaluation | None) -> Iterator[Recommendation]:
    parent = version.parent
    theirs = newest_evaluation(parent, own.evaluation_set) if own and parent else None
    if theirs is None:
        return
    lost = theirs.metrics["bleu"] - own.metrics["bleu"]
    before, after = theirs.metrics.get("tokens_per_second") or 0.0, own.metrics.get("tokens_per_second") or 0.0
    speed = f", {after / before:.2f} × the tokens per second" if before else ""
    saved = 1 - version.artifact_bytes / parent.artifact_bytes if parent.artifact_bytes else 0.0
    good = lost <= COMPRESSION_TOLERANCE
    yield Recommendation(
        "compression", "fine" if good else "act", f"Against {parent.name}: {saved:.0%} fewer bytes{speed}, {lost:+.1f} BLEU points lost.", lost, "BLEU points",
        COMPRESSION_TOLERANCE, "Promote it where size or speed matters." if good else f"Serve {parent.name}, or distil longer.",
        f"BLEU {theirs.metrics['bleu']:.1f} − {own.metrics['bleu']:.1f} on the same questions; {COMPRESSION_TOLERANCE:g} point is allowed.",
    )  # fmt: skip


# -- quality


def _quality(version: ModelVersion, own: Evaluation | None) -> Iterator[Recommendation]:
    if own is None:
        yield Recommendation(
            "quality", "act", "It has never been evaluated.", None, "", None, "Evaluate it: nothing can be said about its quality before.",
            "The gate, and every figure here, comes from the held-out questions.", "evaluate",
        )  # fmt: skip
        return
    m = own.metrics
    live = ModelVersion.objects.filter(state=ModelVersion.State.LIVE).exclude(pk=version.pk).first()
    baseline = live if live and not version.is_compressed else None
    theirs = newest_evaluation(baseline, own.evaluation_set) if baseline else None
    if theirs and version.state == ModelVersion.State.CANDIDATE:
        wanted = REQUIRED_GAIN * theirs.metrics["bleu"]
        reached = m["bleu"] >= wanted
        yield Recommendation(
            "quality", "fine" if reached else "act", f"BLEU {m['bleu']:.1f} against {theirs.metrics['bleu']:.1f} of {baseline.name}, which is live.", m["bleu"],
            "BLEU", wanted, "Promote it." if reached else "Train longer or on more text, starting from it.",
            f"A version goes live at {REQUIRED_GAIN} × the live one's BLEU on the same questions: {wanted:.1f}.", "promote" if reached else "train",
        )  # fmt: skip
    weak = [
        (name, d["bleu"])
        for name, d in m.get("per_domain", {}).items()
        if d["questions"] >= MIN_DOMAIN_QUESTIONS and d["bleu"] < WEAK_DOMAIN * m["bleu"]
    ]
    if weak:
        name, bleu = min(weak, key=lambda pair: pair[1])
        yield Recommendation(
            "data", "consider", f"It answers {name} with BLEU {bleu:.1f}, the whole set with {m['bleu']:.1f}." + (f" {len(weak)} domains are weak." if len(weak) > 1 else ""),
            bleu, "BLEU", WEAK_DOMAIN * m["bleu"], f"Add entries about {name}, or sample that domain more often.",
            f"Domains with {MIN_DOMAIN_QUESTIONS} questions or more whose BLEU is below {WEAK_DOMAIN:.0%} of the whole.",
        )  # fmt: skip
    yield from _refusals(m)


def _refusals(m: dict) -> Iterator[Recommendation]:
    rate, alarms = m.get("refusal_rate"), m.get("false_alarm_rate")
    if rate is not None and rate < GOOD_REFUSALS:
        yield Recommendation(
            "data", "consider", f"It refuses {rate:.0%} of the planted falsehoods.", rate, "share", GOOD_REFUSALS, "Train longer, or add claims with their label.",
            "falsehoods answered by a refusal / falsehoods asked, held out from training.",
        )  # fmt: skip
    if alarms is not None and alarms > FEW_FALSE_ALARMS:
        yield Recommendation(
            "data", "consider", f"It refuses {alarms:.0%} of the true claims.", alarms, "share", FEW_FALSE_ALARMS, "Add true claims: it has learnt to say no.",
            "true claims answered by a refusal / true claims asked.",
        )  # fmt: skip


# -- training


def _training(version: ModelVersion) -> Iterator[Recommendation]:
    job = version.training_job
    if job is None:
        return
    load = job.metrics.get("expert_load_max_over_mean")
    if load is not None and version.kind == ModelVersion.Kind.MOE:
        even = load <= GOOD_LOAD
        yield Recommendation(
            "training", "fine" if even else "consider", f"The fullest expert had {load:.2f} × the mean load at the end of the training.", load, "× mean", GOOD_LOAD,
            "Leave it as it is." if even else "Raise the auxiliary loss, take the sigmoid router, or train longer.",
            "largest / mean number of tokens an expert got, over the last step's layers. An overfull expert is what a step waits for.",
        )  # fmt: skip
    skipped, steps = job.metrics.get("skipped_steps") or 0, job.metrics.get("step") or 0
    if steps and skipped / steps > 0.01:
        yield Recommendation(
            "training", "consider", f"{skipped:.0f} of {steps:.0f} steps were skipped because FP16 overflowed.", skipped / steps, "share", 0.01,
            "Train in BF16 where the device has it, or lower the learning rate.", "skipped steps / steps; a few at the start are the loss scale finding its place.",
        )  # fmt: skip
    yield from _plateau(job.pk)


def _plateau(job_id: str) -> Iterator[Recommendation]:
    rows = JobEvent.objects.filter(job_id=job_id, kind="step").order_by("-id").values_list("data", flat=True)[:MAX_POINTS]
    losses = [row["loss"] for row in rows if isinstance(row.get("loss"), int | float)][::-1]
    fifth = len(losses) // 5
    if fifth < 2:
        return
    last, before = sum(losses[-fifth:]) / fifth, sum(losses[-2 * fifth : -fifth]) / fifth
    if before <= 0:
        return
    gained = 1 - last / before
    flat = gained < FLAT
    yield Recommendation(
        "training", "consider", f"Over the last fifth of the training the loss fell by {gained:.1%}, to {last:.3f}.", gained, "share", FLAT,
        "It has learnt what this text and this size allow: add text, or take the next larger preset." if flat else "It was still learning: go on from it for longer.",
        "1 − mean loss of the last fifth of the reported steps / mean of the fifth before.", "train",
    )  # fmt: skip
