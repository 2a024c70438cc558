"""How gates, domains and lineage are told on the pages."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from apps.portal.templatetags.portal import decimals, ms, percent, signed
from apps.registry.gates import reason_of
from apps.registry.models import Evaluation, GateDecision, ModelVersion

# The gate's rules (apps/registry/gates.py) in words.
RULES = {
    "evaluated": gettext_lazy("Evaluated on held-out questions"),
    "bleu": gettext_lazy("BLEU"),
    "not live already": gettext_lazy("Not live already"),
    "bleu against the live version": gettext_lazy("BLEU against the live version"),
    "smaller or faster": gettext_lazy("Smaller or faster than its parent"),
}
SHARES = ("smaller or faster", "refuses falsehoods", "false alarms")
ANCESTORS_SHOWN = 4


@dataclass(frozen=True)
class GateLine:
    name: str
    passed: bool
    value: str
    threshold: str
    reason: str


def gate_lines(decision: GateDecision) -> list[GateLine]:
    return [
        GateLine(str(RULES.get(rule["name"], rule["name"])), rule["passed"], _figure(rule["name"], rule["value"]), _threshold(rule), reason_of(rule))
        for rule in decision.rules
    ]


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name in SHARES:
        return percent(value)
    return ms(value) if "latency" in name or "p99" in name.lower() else decimals(value, 1)


def _threshold(rule: dict) -> str:
    if rule["threshold"] is None:
        return ""
    most = "latency" in rule["name"] or "p99" in rule["name"].lower() or "alarm" in rule["name"]
    return f"{'≤' if most else '≥'} {_figure(rule['name'], rule['threshold'])}"


@dataclass(frozen=True)
class DomainLine:
    name: str
    bleu: float
    questions: int
    baseline: float | None

    @property
    def change(self) -> str:
        return "" if self.baseline is None else signed(self.bleu - self.baseline, 1)

    @property
    def is_worse(self) -> bool:
        return self.baseline is not None and self.bleu < self.baseline - 3


def domain_lines(own: Evaluation | None, baseline: Evaluation | None) -> list[DomainLine]:
    """Alphabetical, each beside the baseline's on the same set."""
    theirs = baseline.metrics.get("per_domain", {}) if baseline else {}
    found = own.metrics.get("per_domain", {}) if own else {}
    return [DomainLine(name, row["bleu"], row["questions"], theirs.get(name, {}).get("bleu")) for name, row in sorted(found.items())]


@dataclass(frozen=True)
class Node:
    """One box of the lineage."""

    label: str
    note: str = ""
    url: str = ""
    version: ModelVersion | None = None
    is_here: bool = False
    fan: list["Node"] = field(default_factory=list)


def lineage_nodes(chain: Sequence[ModelVersion], children: Sequence[ModelVersion]) -> list[Node]:
    """data ─ run ─ ancestor ─ … ─ [version] ─ its children. A long line of ancestors is cut in the middle of its past."""
    nodes = []
    shown = chain[-(ANCESTORS_SHOWN + 1) :]
    first = shown[0]
    if first.run_id:
        nodes.append(Node(first.run.dataset.name, _("data"), reverse("dataset", args=[first.run.dataset_id])))
    if len(chain) > len(shown):
        nodes.append(Node("…", _("%(n)s earlier") % {"n": len(chain) - len(shown)}))
    for version in shown:
        if version.training_job_id:
            nodes.append(Node(_("training"), version.training_job.preset, reverse("training_job", args=[version.training_job_id])))
        elif version.compression_job_id:
            nodes.append(
                Node(version.compression_job.get_method_display(), _("compression"), reverse("compression_job", args=[version.compression_job_id]))
            )
        nodes.append(_node(version, is_here=version is chain[-1]))
    if children:
        nodes.append(Node("", fan=[_node(child) for child in children]))
    return nodes


def _node(version: ModelVersion, is_here: bool = False) -> Node:
    note = f"{version.get_kind_display()} · {version.get_state_display()}"
    return Node(version.name, note, reverse("version", args=[version.pk]), version, is_here)
