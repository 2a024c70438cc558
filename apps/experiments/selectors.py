from collections import Counter
from dataclasses import asdict

from django.db.models import Avg, Count, Q, QuerySet, Sum
from django.db.models.functions import Coalesce
from django.utils.translation import gettext as _

from apps.experiments.models import Experiment
from apps.experiments.statistics import Interval, difference_p_value, mean_interval, sample_ratio_p_value, share_interval
from apps.portal.templatetags.portal import percent
from apps.registry.known_answers import known_answers
from apps.serving.answer_log import answers
from apps.serving.models import Answer
from apps.serving.questions import prompt_key

ARMS = ("control", "treatment")
SUSPICIOUS_RATIO_P = 0.001
SIGNIFICANT_P = 0.05


def experiments() -> QuerySet[Experiment]:
    return Experiment.objects.select_related("control", "treatment", "created_by")


def running() -> Experiment | None:
    return experiments().filter(status=Experiment.Status.RUNNING).first()


def results(experiment: Experiment) -> dict:
    """Each arm's counts, rating, accuracy and recall on questions with known answers, latency; the difference; a verdict in words."""
    arms = {arm: _arm(experiment, arm) for arm in ARMS}
    control, treatment = (Interval(**arms[arm]["rating"]) for arm in ARMS)
    p = difference_p_value(control, treatment)
    ratio = sample_ratio_p_value(arms["treatment"]["subjects"], arms["control"]["subjects"], experiment.split)
    return {
        "experiment": experiment.pk,
        "status": experiment.status,
        "arms": arms,
        "rating_difference": treatment.value - control.value if None not in (control.value, treatment.value) else None,
        "rating_p_value": p,
        "sample_ratio_p_value": ratio,
        "verdict": _verdict(experiment, control, treatment, p, ratio),
    }


def _arm(experiment: Experiment, arm: str) -> dict:
    rows = answers().filter(experiment=experiment, arm=arm)
    sums = rows.aggregate(
        answers=Count("id"), subjects=Count(Coalesce("conversation_id", "id"), distinct=True), errors=Count("id", filter=Q(status=Answer.Status.ERROR)),
        latency=Avg("latency_ms"), rated=Count("feedback"), total=Sum("feedback__rating"),
        squares=Sum(Coalesce("feedback__rating", 0) * Coalesce("feedback__rating", 0)),
    )  # fmt: skip
    accuracy, recall = _known(rows)
    return {
        "version": getattr(experiment, arm).name,
        "answers": sums["answers"],
        "subjects": sums["subjects"],
        "errors": sums["errors"],
        "latency_ms": sums["latency"],
        "rating": asdict(mean_interval(sums["rated"], sums["total"] or 0, sums["squares"] or 0)),
        "accuracy": asdict(accuracy),
        "recall": recall,
    }


def _known(rows: QuerySet[Answer]) -> tuple[Interval, float | None]:
    """Accuracy: the share of known questions answered exactly. Recall: the mean share of the known answer's words that came."""
    known = known_answers()
    right = asked = 0
    recalls = []
    for key, text in rows.filter(prompt_key__in=list(known)[:30_000]).values_list("prompt_key", "text"):
        asked += 1
        right += prompt_key(text) == prompt_key(known[key])
        recalls.append(_recall(known[key], text))
    return share_interval(right, asked), (sum(recalls) / asked if asked else None)


def _pieces(text: str) -> Counter:
    """Words; each character of a text without spaces between its words."""
    words = text.casefold().split()
    return Counter(words if len(words) > 2 else text)


def _recall(reference: str, text: str) -> float:
    wanted, came = _pieces(reference), _pieces(text)
    return sum((wanted & came).values()) / max(1, sum(wanted.values()))


def _verdict(experiment: Experiment, control: Interval, treatment: Interval, p: float | None, ratio: float | None) -> str:
    if ratio is not None and ratio < SUSPICIOUS_RATIO_P:
        return _("The arms' sizes do not fit the planned split; find out why before trusting any other figure here.")
    if p is None:
        return _("Too few ratings yet: %(control)s and %(treatment)s. Each arm needs at least two.") % {
            "control": control.count,
            "treatment": treatment.count,
        }
    better, worse = (experiment.treatment, experiment.control) if treatment.value > control.value else (experiment.control, experiment.treatment)
    if p < SIGNIFICANT_P:
        return _("%(better)s is rated better than %(worse)s; a difference this large would come by chance in %(p)s of such tests.") % {
            "better": better.name,
            "worse": worse.name,
            "p": percent(p, 1),
        }
    return _(
        "Not clear yet: a difference this large would come by chance in %(p)s of such tests. Looking again and again makes chance findings likelier."
    ) % {"p": percent(p)}
