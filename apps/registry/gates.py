"""The gate: may this version go live? Pure reading; what it says is written down by `registry.services.decide`."""

from dataclasses import asdict, dataclass

from apps.jobs.models import Job
from apps.registry.models import Evaluation, EvaluationSet, ModelVersion

REQUIRED_GAIN = 1.05  # the mission's: a version goes live only when its BLEU beats the baseline's by 5 %
COMPRESSION_TOLERANCE = 1.0  # BLEU points a compressed child may lose against its parent


@dataclass(frozen=True)
class Rule:
    name: str
    passed: bool
    value: float | None
    threshold: float | None
    reason: str

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    passed: bool
    rules: list[Rule]
    baseline: ModelVersion | None
    evaluation_set: EvaluationSet | None


def newest_evaluation(version: ModelVersion, evaluation_set: EvaluationSet | None = None) -> Evaluation | None:
    rows = version.evaluations.filter(status=Job.Status.SUCCEEDED)
    if evaluation_set is not None:
        rows = rows.filter(evaluation_set=evaluation_set)
    return rows.order_by("-evaluation_set_id", "-id").select_related("evaluation_set").first()


def verdict(version: ModelVersion) -> Verdict:
    """Compare the version with its baseline on the same, newest held-out set.

    The baseline of a compressed child is its parent, of any other version the live one, of the very first the trivial answer.
    """
    live = ModelVersion.objects.filter(state=ModelVersion.State.LIVE).first()
    own = newest_evaluation(version)
    if own is None:
        rule = Rule("evaluated", False, None, None, f"{version.name} has no finished evaluation; evaluate it first.")
        return Verdict(False, [rule], live, None)
    if version.is_compressed and version.parent:
        rules = [*_compressed(version, own), *_keeps_up_with_live(version, own, live)]
        return Verdict(all(r.passed for r in rules), rules, version.parent, own.evaluation_set)
    if live is None:
        rules = [_beats_trivial(own)]
    elif live.pk == version.pk:
        rules = [Rule("not live already", False, None, None, f"{version.name} is live already.")]
    else:
        rules = [_beats_live(version, own, live)]
    return Verdict(all(r.passed for r in rules), rules, live, own.evaluation_set)


def _beats_trivial(own: Evaluation) -> Rule:
    bleu, trivial = own.metrics["bleu"], own.metrics["baseline_bleu"]
    ok = bleu > trivial
    reason = f"BLEU {bleu:.1f} {'beats' if ok else 'does not beat'} the {trivial:.1f} of always giving the most frequent answer."
    return Rule("bleu", ok, bleu, trivial, reason)


def _beats_live(version: ModelVersion, own: Evaluation, live: ModelVersion) -> Rule:
    theirs = newest_evaluation(live, own.evaluation_set)
    if theirs is None:
        why = f"{live.name}, the live version, has not been evaluated on the same questions yet; evaluate {version.name} again."
        return Rule("bleu", False, own.metrics["bleu"], None, why)
    bleu, threshold = own.metrics["bleu"], REQUIRED_GAIN * theirs.metrics["bleu"]
    gain = (bleu / theirs.metrics["bleu"] - 1) * 100 if theirs.metrics["bleu"] else float("inf")
    ok = bleu >= threshold and bleu > 0
    reason = (
        f"BLEU {bleu:.1f} {'reaches' if ok else 'is below'} {threshold:.1f}, which is 5 % above the {theirs.metrics['bleu']:.1f} "
        f"of {live.name} on the same {own.metrics['questions']} questions ({gain:+.1f} %)."
    )
    return Rule("bleu", ok, bleu, threshold, reason)


def _keeps_up_with_live(version: ModelVersion, own: Evaluation, live: ModelVersion | None) -> list[Rule]:
    """A small child of an old version must not replace a better live one."""
    theirs = newest_evaluation(live, own.evaluation_set) if live and live.pk not in (version.pk, version.parent_id) else None
    if theirs is None:
        return []
    bleu, floor = own.metrics["bleu"], theirs.metrics["bleu"] - COMPRESSION_TOLERANCE
    reason = f"BLEU {bleu:.1f} against {theirs.metrics['bleu']:.1f} of {live.name}, which is live; at least {floor:.1f} is asked."
    return [Rule("bleu against the live version", bleu >= floor, bleu, floor, reason)]


def _compressed(version: ModelVersion, own: Evaluation) -> list[Rule]:
    parent = version.parent
    theirs = newest_evaluation(parent, own.evaluation_set)
    if theirs is None:
        return [Rule("bleu", False, own.metrics["bleu"], None, f"{parent.name}, its parent, was not evaluated on the same questions; evaluate it.")]
    bleu, floor = own.metrics["bleu"], theirs.metrics["bleu"] - COMPRESSION_TOLERANCE
    kept = bleu >= floor
    said = f"BLEU {bleu:.1f} {'stays' if kept else 'does not stay'} within {COMPRESSION_TOLERANCE:g} point of {parent.name}'s {theirs.metrics['bleu']:.1f}."
    saved = 1 - version.artifact_bytes / parent.artifact_bytes if parent.artifact_bytes else 0.0
    before, after = theirs.metrics.get("tokens_per_second") or 0.0, own.metrics.get("tokens_per_second") or 0.0
    speed = after / before if before else 0.0
    gained = saved > 0 or speed > 1
    return [
        Rule("bleu", kept, bleu, floor, said),
        Rule("smaller or faster", gained, saved, 0.0, f"{saved:.0%} fewer bytes and {speed:.2f} × the tokens per second of {parent.name}."),
    ]
