"""The gate: may this version go live? Pure reading; what it says is written down by `registry.services.decide`."""

from dataclasses import asdict, dataclass, field

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from apps.jobs.models import Job
from apps.portal.templatetags.portal import percent
from apps.registry.models import Evaluation, EvaluationSet, ModelVersion

REQUIRED_GAIN = 1.05  # the mission's: a version goes live only when its BLEU beats the baseline's by 5 %
COMPRESSION_TOLERANCE = 1.0  # BLEU points a compressed child may lose against its parent


@dataclass(frozen=True)
class Rule:
    name: str
    passed: bool
    value: float | None
    threshold: float | None
    text: str  # its reason, not yet filled in and not yet translated
    values: dict[str, str] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        return _(self.text) % self.values

    def as_dict(self) -> dict:
        """As it is written down: `reason` in English, and what it takes to say it in another language."""
        return {**asdict(self), "reason": self.text % self.values}


def reason_of(rule: dict) -> str:
    """Why a rule that was written down passed or not, in the reader's language."""
    return _(rule["text"]) % rule["values"] if rule.get("text") else rule["reason"]


def told(rule: dict) -> dict:
    """A rule that was written down, as it is shown."""
    return {**{name: rule[name] for name in ("name", "passed", "value", "threshold")}, "reason": reason_of(rule)}


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
        rule = Rule(
            gettext_noop("evaluated"),
            False,
            None,
            None,
            gettext_noop("%(name)s has no finished evaluation; evaluate it first."),
            {"name": version.name},
        )
        return Verdict(False, [rule], live, None)
    if version.is_compressed and version.parent:
        rules = [*_compressed(version, own), *_keeps_up_with_live(version, own, live)]
        return Verdict(all(r.passed for r in rules), rules, version.parent, own.evaluation_set)
    if live is None:
        rules = [_beats_trivial(own)]
    elif live.pk == version.pk:
        rules = [Rule(gettext_noop("not live already"), False, None, None, gettext_noop("%(name)s is live already."), {"name": version.name})]
    else:
        rules = [_beats_live(version, own, live)]
    return Verdict(all(r.passed for r in rules), rules, live, own.evaluation_set)


def _beats_trivial(own: Evaluation) -> Rule:
    bleu, trivial = own.metrics["bleu"], own.metrics["baseline_bleu"]
    ok = bleu > trivial
    if ok:
        text = gettext_noop("BLEU %(bleu)s beats the %(trivial)s of always giving the most frequent answer.")
    else:
        text = gettext_noop("BLEU %(bleu)s does not beat the %(trivial)s of always giving the most frequent answer.")
    return Rule("bleu", ok, bleu, trivial, text, {"bleu": f"{bleu:.1f}", "trivial": f"{trivial:.1f}"})


def _beats_live(version: ModelVersion, own: Evaluation, live: ModelVersion) -> Rule:
    theirs = newest_evaluation(live, own.evaluation_set)
    if theirs is None:
        text = gettext_noop("%(live)s, the live version, has not been evaluated on the same questions yet; evaluate %(name)s again.")
        return Rule("bleu", False, own.metrics["bleu"], None, text, {"live": live.name, "name": version.name})
    bleu, threshold = own.metrics["bleu"], REQUIRED_GAIN * theirs.metrics["bleu"]
    gain = (bleu / theirs.metrics["bleu"] - 1) * 100 if theirs.metrics["bleu"] else float("inf")
    ok = bleu >= threshold and bleu > 0
    if ok:
        text = gettext_noop(
            "BLEU %(bleu)s reaches %(threshold)s, which is 5 %% above the %(theirs)s of %(live)s on the same %(n)s questions (%(gain)s %%)."
        )
    else:
        text = gettext_noop(
            "BLEU %(bleu)s is below %(threshold)s, which is 5 %% above the %(theirs)s of %(live)s on the same %(n)s questions (%(gain)s %%)."
        )
    values = {
        "bleu": f"{bleu:.1f}", "threshold": f"{threshold:.1f}", "theirs": f"{theirs.metrics['bleu']:.1f}", "live": live.name,
        "n": str(own.metrics["questions"]), "gain": f"{gain:+.1f}",
    }  # fmt: skip
    return Rule("bleu", ok, bleu, threshold, text, values)


def _keeps_up_with_live(version: ModelVersion, own: Evaluation, live: ModelVersion | None) -> list[Rule]:
    """A small child of an old version must not replace a better live one."""
    theirs = newest_evaluation(live, own.evaluation_set) if live and live.pk not in (version.pk, version.parent_id) else None
    if theirs is None:
        return []
    bleu, floor = own.metrics["bleu"], theirs.metrics["bleu"] - COMPRESSION_TOLERANCE
    text = gettext_noop("BLEU %(bleu)s against %(theirs)s of %(live)s, live at the time; at least %(floor)s is asked.")
    values = {"bleu": f"{bleu:.1f}", "theirs": f"{theirs.metrics['bleu']:.1f}", "live": live.name, "floor": f"{floor:.1f}"}
    return [Rule(gettext_noop("bleu against the live version"), bleu >= floor, bleu, floor, text, values)]


def _compressed(version: ModelVersion, own: Evaluation) -> list[Rule]:
    parent = version.parent
    theirs = newest_evaluation(parent, own.evaluation_set)
    if theirs is None:
        text = gettext_noop("%(parent)s, its parent, was not evaluated on the same questions; evaluate it.")
        return [Rule(gettext_noop("bleu"), False, own.metrics["bleu"], None, text, {"parent": parent.name})]
    bleu, floor = own.metrics["bleu"], theirs.metrics["bleu"] - COMPRESSION_TOLERANCE
    kept = bleu >= floor
    if kept:
        text = gettext_noop("BLEU %(bleu)s stays within %(tolerance)s point of %(parent)s's %(theirs)s.")
    else:
        text = gettext_noop("BLEU %(bleu)s does not stay within %(tolerance)s point of %(parent)s's %(theirs)s.")
    values = {"bleu": f"{bleu:.1f}", "tolerance": f"{COMPRESSION_TOLERANCE:g}", "parent": parent.name, "theirs": f"{theirs.metrics['bleu']:.1f}"}
    saved = 1 - version.artifact_bytes / parent.artifact_bytes if parent.artifact_bytes else 0.0
    before, after = theirs.metrics.get("tokens_per_second") or 0.0, own.metrics.get("tokens_per_second") or 0.0
    speed = after / before if before else 0.0
    gained = saved > 0 or speed > 1
    return [
        Rule("bleu", kept, bleu, floor, text, values),
        Rule(
            gettext_noop("smaller or faster"),
            gained,
            saved,
            0.0,
            gettext_noop("%(saved)s fewer bytes and %(speed)s × the tokens per second of %(parent)s."),
            {"saved": percent(saved), "speed": f"{speed:.2f}", "parent": parent.name},
        ),
    ]
