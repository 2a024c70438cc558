"""What to change next about one version, by what was measured on it: `advise`. The order is that of effort against gain: serving
first (batching, caching), then quantization, and training only where quality falls short."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from apps.jobs.models import JobEvent
from apps.monitoring.histogram import percentile
from apps.monitoring.models import MetricMinute
from apps.monitoring.rules import P99
from apps.portal.templatetags.portal import percent
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
AREAS = (gettext_noop("serving"), gettext_noop("compression"), gettext_noop("training"), gettext_noop("quality"), gettext_noop("data"))


@dataclass(frozen=True)
class Recommendation:
    """One thing that was measured, and what follows. `severity`: act, consider, fine. `action`: what a page may offer as a button."""

    area: str  # one of AREAS
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
            "serving", "fine", _("It answered %(requests)s requests in the last 24 hours.") % {"requests": requests}, requests, "requests", FEW_REQUESTS,
            _("Nothing to say about its serving yet: send it traffic, or an experiment's share of it."), _("A P99 of fewer than 50 requests is one request."),
        )  # fmt: skip
        return
    p99 = percentile(latency, 0.99)
    slow = p99 > P99.threshold
    yield Recommendation(
        "serving", "act" if slow else "fine", _("The P99 latency of the last 24 hours is %(p99)s ms.") % {"p99": f"{p99:.0f}"}, p99, "ms", P99.threshold,
        _("First let more requests share a step and start another inference worker; then serve an INT8 version.") if slow else _("Leave it as it is."),
        _("99th percentile of %(requests)s requests, from a histogram of 2 %% bins; the alert's threshold is %(threshold)s ms.") % {"requests": f"{requests:,}", "threshold": f"{P99.threshold:.0f}"},
    )  # fmt: skip
    rate = cached / requests
    yield Recommendation(
        "serving", "fine" if rate >= GOOD_HIT_RATE else "consider", _("%(rate)s of the requests were answered from the cache.") % {"rate": percent(rate)}, rate, "share", GOOD_HIT_RATE,
        _("Leave it as it is.") if rate >= GOOD_HIT_RATE else _("Ask at temperature 0, with the same max_tokens everywhere, or give the cache more bytes (DSPORTAL_CACHE_BYTES)."),
        _("cached / requests. Only temperature 0 is kept, and every parameter is part of the key."),
    )  # fmt: skip
    if queue and (depth := sum(queue) / len(queue)) > 1:
        yield Recommendation(
            "serving", "consider", _("On average %(depth)s answers are waiting or being made.") % {"depth": f"{depth:.1f}"}, depth, "answers", 1.0,
            _("Start another inference worker: those that wait are latency."), _("mean of the minutes' queue depth; by Little's law it is QPS · latency."),
        )  # fmt: skip


# -- compression


def _compression(version: ModelVersion, own: Evaluation | None) -> Iterator[Recommendation]:
    if version.is_compressed:
        yield from _against_parent(version, own)
        return
    children = list(ModelVersion.objects.filter(parent=version, compression_job__isnull=False).order_by("artifact_bytes"))
    small = next((child for child in children if child.kind == ModelVersion.Kind.INT8), None)
    if small is None:
        if applicable(version.kind, CompressionJob.Method.INT8, version.config) is None:
            yield Recommendation(
                "compression", "consider", _("It is %(n)s MB and has no INT8 version.") % {"n": f"{version.artifact_bytes / 1e6:,.1f}"}, version.artifact_bytes, "bytes", None,
                _("Quantize it first: it takes seconds and needs no training."),
                # xgettext:no-python-format
                _("INT8 keeps one byte and a scale for what FP32 keeps in four: about 74 % fewer bytes, and decoding is bound by reading them."),
                "compress:int8",
            )  # fmt: skip
        return
    theirs = newest_evaluation(small, own.evaluation_set) if own else None
    if theirs is None:
        yield Recommendation(
            "compression", "consider", _("%(name)s has not been evaluated on the same questions.") % {"name": small.name}, None, "", None, _("Evaluate %(name)s.") % {"name": small.name},
            _("Without it nobody knows what the smaller size costs."), "evaluate",
        )  # fmt: skip
        return
    lost = own.metrics["bleu"] - theirs.metrics["bleu"]
    good = lost <= COMPRESSION_TOLERANCE
    saved = 1 - small.artifact_bytes / version.artifact_bytes if version.artifact_bytes else 0.0
    yield Recommendation(
        "compression", "fine" if good else "consider", _("%(name)s saves %(saved)s of the bytes and loses %(lost)s BLEU points.") % {"name": small.name, "saved": percent(saved), "lost": f"{lost:+.1f}"}, lost, "BLEU points",
        COMPRESSION_TOLERANCE, _("Serve %(name)s.") % {"name": small.name} if good else _("Quantization alone costs too much quality here: try pruning or distillation."),
        _("BLEU %(bleu)s − %(other)s on the same %(questions)s questions; %(tolerance)s point is allowed.") % {"bleu": f"{own.metrics['bleu']:.1f}", "other": f"{theirs.metrics['bleu']:.1f}", "questions": own.metrics["questions"], "tolerance": f"{COMPRESSION_TOLERANCE:g}"},
        None if good else "compress:policy",
    )  # fmt: skip


def _against_parent(version: ModelVersion, own: Evaluation | None) -> Iterator[Recommendation]:
    parent = version.parent
    theirs = newest_evaluation(parent, own.evaluation_set) if own and parent else None
    if theirs is None:
        return
    lost = theirs.metrics["bleu"] - own.metrics["bleu"]
    before, after = theirs.metrics.get("tokens_per_second") or 0.0, own.metrics.get("tokens_per_second") or 0.0
    speed = _(", %(n)s × the tokens per second") % {"n": f"{after / before:.2f}"} if before else ""
    saved = 1 - version.artifact_bytes / parent.artifact_bytes if parent.artifact_bytes else 0.0
    good = lost <= COMPRESSION_TOLERANCE
    yield Recommendation(
        "compression", "fine" if good else "act", _("Against %(name)s: %(saved)s fewer bytes%(speed)s, %(lost)s BLEU points lost.") % {"name": parent.name, "saved": percent(saved), "speed": speed, "lost": f"{lost:+.1f}"}, lost, "BLEU points",
        COMPRESSION_TOLERANCE, _("Promote it where size or speed matters.") if good else _("Serve %(name)s, or distil longer.") % {"name": parent.name},
        _("BLEU %(bleu)s − %(other)s on the same questions; %(tolerance)s point is allowed.") % {"bleu": f"{theirs.metrics['bleu']:.1f}", "other": f"{own.metrics['bleu']:.1f}", "tolerance": f"{COMPRESSION_TOLERANCE:g}"},
    )  # fmt: skip


# -- quality


def _quality(version: ModelVersion, own: Evaluation | None) -> Iterator[Recommendation]:
    if own is None:
        yield Recommendation(
            "quality", "act", _("It has never been evaluated."), None, "", None, _("Evaluate it: nothing can be said about its quality before."),
            _("The gate, and every figure here, comes from the held-out questions."), "evaluate",
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
            "quality", "fine" if reached else "act", _("BLEU %(bleu)s against %(other)s of %(name)s, which is live.") % {"bleu": f"{m['bleu']:.1f}", "other": f"{theirs.metrics['bleu']:.1f}", "name": baseline.name}, m["bleu"],
            "BLEU", wanted, _("Promote it.") if reached else _("Train longer or on more text, starting from it."),
            _("A version goes live at %(gain)s × the live one's BLEU on the same questions: %(wanted)s.") % {"gain": REQUIRED_GAIN, "wanted": f"{wanted:.1f}"}, "promote" if reached else "train",
        )  # fmt: skip
    weak = [
        (name, d["bleu"])
        for name, d in m.get("per_domain", {}).items()
        if d["questions"] >= MIN_DOMAIN_QUESTIONS and d["bleu"] < WEAK_DOMAIN * m["bleu"]
    ]
    if weak:
        name, bleu = min(weak, key=lambda pair: pair[1])
        yield Recommendation(
            "data", "consider", _("It answers %(name)s with BLEU %(bleu)s, the whole set with %(other)s.") % {"name": name, "bleu": f"{bleu:.1f}", "other": f"{m['bleu']:.1f}"} + (_(" %(n)s domains are weak.") % {"n": len(weak)} if len(weak) > 1 else ""),
            bleu, "BLEU", WEAK_DOMAIN * m["bleu"], _("Add entries about %(name)s, or sample that domain more often.") % {"name": name},
            _("Domains with %(n)s questions or more whose BLEU is below %(share)s of the whole.") % {"n": MIN_DOMAIN_QUESTIONS, "share": percent(WEAK_DOMAIN)},
        )  # fmt: skip
    yield from _refusals(m)


def _refusals(m: dict) -> Iterator[Recommendation]:
    rate, alarms = m.get("refusal_rate"), m.get("false_alarm_rate")
    if rate is not None and rate < GOOD_REFUSALS:
        yield Recommendation(
            "data", "consider", _("It refuses %(rate)s of the planted falsehoods.") % {"rate": percent(rate)}, rate, "share", GOOD_REFUSALS, _("Train longer, or add claims with their label."),
            _("falsehoods answered by a refusal / falsehoods asked, held out from training."),
        )  # fmt: skip
    if alarms is not None and alarms > FEW_FALSE_ALARMS:
        yield Recommendation(
            "data", "consider", _("It refuses %(alarms)s of the true claims.") % {"alarms": percent(alarms)}, alarms, "share", FEW_FALSE_ALARMS, _("Add true claims: it has learnt to say no."),
            _("true claims answered by a refusal / true claims asked."),
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
            "training", "fine" if even else "consider", _("The fullest expert had %(load)s × the mean load at the end of the training.") % {"load": f"{load:.2f}"}, load, "× mean", GOOD_LOAD,
            _("Leave it as it is.") if even else _("Raise the auxiliary loss, take the sigmoid router, or train longer."),
            _("largest / mean number of tokens an expert got, over the last step's layers. An overfull expert is what a step waits for."),
        )  # fmt: skip
    skipped, steps = job.metrics.get("skipped_steps") or 0, job.metrics.get("step") or 0
    if steps and skipped / steps > 0.01:
        yield Recommendation(
            "training", "consider", _("%(skipped)s of %(steps)s steps were skipped because FP16 overflowed.") % {"skipped": f"{skipped:.0f}", "steps": f"{steps:.0f}"}, skipped / steps, "share", 0.01,
            _("Train in BF16 where the device has it, or lower the learning rate."), _("skipped steps / steps; a few at the start are the loss scale finding its place."),
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
        "training", "consider", _("Over the last fifth of the training the loss fell by %(gained)s, to %(last)s.") % {"gained": percent(gained, 1), "last": f"{last:.3f}"}, gained, "share", FLAT,
        _("It has learnt what this text and this size allow: add text, or take the next larger preset.") if flat else _("It was still learning: go on from it for longer."),
        _("1 − mean loss of the last fifth of the reported steps / mean of the fifth before."), "train",
    )  # fmt: skip
