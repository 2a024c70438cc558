"""A trace as rows to draw: when each phase began, how long it took, what it was about."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from apps.monitoring.traces.store import Step, Trace
from apps.portal.templatetags.portal import decimals, exact

WIDTH = 1000  # of the drawing
LEAST_WIDTH = 3  # so that a phase of nothing is seen

NAMES = {
    ("turn", ""): gettext_lazy("Web: until its turn came, and who asks was known"),
    ("database", "version"): gettext_lazy("Database: which version answers"), ("database", "answer"): gettext_lazy("Log: writing the answer down"),
    ("cache", ""): gettext_lazy("Answer cache"), ("queue", "broker"): gettext_lazy("Queue: until a worker took it"),
    ("queue", "engine"): gettext_lazy("Queue: until the engine had a slot"), ("load", ""): gettext_lazy("Loading the model"),
    ("prefill", ""): gettext_lazy("Prefill: reading the question"), ("decode", ""): gettext_lazy("Decode: writing the answer"),
    ("deliver", ""): gettext_lazy("Handing over the last piece"), ("shared", ""): gettext_lazy("Reading the answer somebody else asked for"),
}  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """`x` and `width` of WIDTH. `kind`: the phase's name, for its colour."""

    label: str
    kind: str
    note: str
    started_ms: float
    took_ms: float
    x: float
    width: float


@dataclass(frozen=True)
class Waterfall:
    took_ms: float
    began: datetime
    bars: list[Bar]
    elsewhere_ms: float  # in none of the phases: the web process itself, and the way between processes


def waterfall(trace: Trace) -> Waterfall:
    root = trace.root or Step("", min(s.start for s in trace.steps), max(s.end for s in trace.steps))
    # Clocks of two machines differ: a phase of another one is kept within the request.
    whole = max(1, max([root.end, *(s.end for s in trace.steps)]) - root.start)

    def bar(step: Step) -> Bar:
        x = max(0, step.start - root.start) / whole * WIDTH
        width = max(LEAST_WIDTH, step.milliseconds * 1e6 / whole * WIDTH)
        return Bar(
            _label(step),
            step.name,
            _note(step),
            (step.start - root.start) / 1e6,
            step.milliseconds,
            min(x, WIDTH - LEAST_WIDTH),
            min(width, WIDTH - x),
        )

    covered = _covered([(s.start, s.end) for s in trace.steps])
    bars = [bar(step) for step in trace.steps]
    return Waterfall(root.milliseconds, datetime.fromtimestamp(root.start / 1e9, UTC), bars, max(0.0, root.milliseconds - covered / 1e6))


def _label(step: Step) -> str:
    return str(NAMES.get((step.name, str(step.about.get("what") or step.about.get("where") or "")), step.name))


def _note(step: Step) -> str:
    about, seconds = step.about, (step.end - step.start) / 1e9
    if step.name == "prefill":
        said = _("%(n)s tokens") % {"n": exact(about["tokens"])}
        return said + (_(", %(n)s of them known from before") % {"n": exact(about["reused"])} if about.get("reused") else "")
    if step.name == "decode":
        said = _("%(n)s tokens") % {"n": exact(about["tokens"])}
        return said + (_(", %(rate)s tokens/s") % {"rate": decimals(about["tokens"] / seconds, 0)} if seconds else "")
    return ""


def _covered(spans: list[tuple[int, int]]) -> int:
    """ns within at least one of them."""
    total = reached = 0
    for start, end in sorted(spans):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def workers_of(trace: Trace) -> list[str]:
    return sorted({str(step.about["worker"]) for step in trace.steps if "worker" in step.about})


def facts(trace: Trace) -> dict[str, Any]:
    """What the root span holds, by plain names."""
    about = trace.root.about if trace.root else {}
    return {
        "request_id": about.get("dsportal.request_id", ""), "method": about.get("http.request.method", ""), "path": about.get("url.path", ""),
        "status": about.get("http.response.status_code"), "user": about.get("user.name", ""), "tenant": about.get("dsportal.tenant", ""),
        "version": about.get("dsportal.version", ""), "answers": list(about.get("dsportal.answers", ())), "failure": about.get("dsportal.failure", ""),
        "failed": bool(trace.root and trace.root.failed),
    }  # fmt: skip
