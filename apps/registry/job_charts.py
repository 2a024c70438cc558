"""What one compression job drew: a pruning curve, a student's loss, or the policy's variants and the front among them."""

from collections.abc import Sequence

from django.utils.translation import gettext as _

from apps.monitoring.figures import Chart, Line, Mark, Table, base_layout, line_chart
from apps.portal.retelling import retold
from apps.portal.templatetags.portal import decimals, percent, size
from apps.registry.models import CompressionJob

SMALLEST, LARGEST = 9, 30  # px of a point's diameter


def chart_title(job: CompressionJob) -> str:
    """Empty where the job drew nothing."""
    details = job.result.get("details", {})
    if [row for row in job.trail if row["figures"]]:
        return _("Size × BLEU × speed of what was tried")
    if details.get("pruning_curve"):
        return _("Pruning curve: BLEU without recovery")
    return _("Loss of the student") if details.get("curve") else ""


def chart_note(job: CompressionJob) -> str:
    """What the chart's signs mean."""
    if job.trail:
        return _("a point's area is its speed; filled: no other beats it")
    if job.result.get("details", {}).get("pruning_curve"):
        return _("recommended: as far as at most one point of BLEU is lost without recovery; with recovery more may go")
    return ""


def job_chart(job: CompressionJob) -> Chart:
    details = job.result.get("details", {})
    if found := [row for row in job.trail if row["figures"]]:
        return tried(found)
    if curve := details.get("pruning_curve"):
        return pruning(curve, details.get("recommended_sparsity"))
    if curve := details.get("curve"):
        return learning(curve)
    return Chart(empty=_("This job drew no curve."))


def pruning(curve: Sequence[dict], recommended: float | None) -> Chart:
    """BLEU over the share that is gone, an upright at the largest share that loses no more than allowed."""
    shares = [100 * point["sparsity"] for point in curve]
    first = curve[0]["bytes"]
    table = Table(
        [_("Sparsity"), "BLEU", _("Size"), _("of the whole"), _("Tokens/s")],
        [
            [percent(p["sparsity"]), decimals(p["bleu"], 1), size(p["bytes"]), percent(p["bytes"] / first), decimals(p["tokens_per_second"], 0)]
            for p in curve
        ],
    )
    lines = [
        Line("BLEU", shares, [p["bleu"] for p in curve], hover="%{y:.1f}"),
        # xgettext:no-python-format
        Line(_("size in %"), shares, [100 * p["bytes"] / first for p in curve], colour="var(--soft)", hover="%{y:.0f} %", dash="dot"),
    ]
    marks = [Mark(100 * recommended, _("recommended"))] if recommended else []
    # xgettext:no-python-format
    return line_chart(lines, ceiling=105.0, x_title=_("sparsity in %"), marks=marks, table=table, final=True)


def learning(curve: Sequence[Sequence[float]]) -> Chart:
    steps, seconds, losses = ([point[i] for point in curve] for i in range(3))
    table = Table(
        [_("Step"), _("Seconds"), _("Loss")], [[f"{a:,}", decimals(b, 0), decimals(c, 3)] for a, b, c in zip(steps, seconds, losses, strict=True)]
    )
    return line_chart([Line("", steps, losses, hover="%{y:.3f}")], x_title=_("step"), table=table, final=True)


def tried(rows: Sequence[dict]) -> Chart:
    """A point for each variant the policy measured; those that no other beats in size, speed and BLEU are filled, and joined."""
    figures = [row["figures"] for row in rows]
    front = sorted((row for row in rows if row.get("front")), key=lambda row: row["figures"]["bytes"])
    fastest = max(_speed(f) for f in figures) or 1.0
    megabytes, bleu = [f["bytes"] / 1e6 for f in figures], [f["bleu"] for f in figures]
    names = [retold(row["step"]) for row in rows]
    points = {
        "type": "scatter", "mode": "markers+text", "x": [round(value, 3) for value in megabytes], "y": [round(value, 2) for value in bleu],
        "text": names, "textposition": ["bottom center" if i % 2 else "top center" for i in range(len(rows))], "cliponaxis": False,
        "textfont": {"size": 12}, "error_y": {"visible": False},
        "marker": {
            "color": ["var(--accent)" if row.get("front") else "var(--surface)" for row in rows], "line": {"width": 1.5, "color": "var(--accent)"},
            "size": [round(SMALLEST + (LARGEST - SMALLEST) * (_speed(f) / fastest) ** 0.5, 1) for f in figures],
        },
        "hovertemplate": [
            f"{name}<br>BLEU {b:.1f}<br>{size(f['bytes'])}<br>{_speed(f):.2f} ×<extra></extra>" for name, b, f in zip(names, bleu, figures, strict=True)
        ],
    }  # fmt: skip
    line = {
        "type": "scatter", "mode": "lines", "x": [round(row["figures"]["bytes"] / 1e6, 3) for row in front],
        "y": [round(row["figures"]["bleu"], 2) for row in front], "line": {"color": "var(--accent)", "width": 1, "dash": "dot"}, "hoverinfo": "skip",
    }  # fmt: skip
    layout = base_layout(size="l", right=60)
    layout["hovermode"] = "closest"
    layout["xaxis"] |= {
        "title": {"text": _("size in MB"), "standoff": 6},
        "range": [0, max(megabytes) * 1.12],
        "showspikes": False,
        "fixedrange": True,
    }
    layout["yaxis"] |= {"title": {"text": "BLEU", "standoff": 4}, "range": [max(0.0, min(bleu) - 8), min(104.0, max(bleu) + 6)]}
    layout["margin"] |= {"b": 42, "l": 52}
    table = Table(
        [_("Step"), _("Size"), "BLEU", _("Speed"), "P99", _("On the front")],
        [
            [
                name, size(f["bytes"]), decimals(f["bleu"], 1), f"{_speed(f):.2f} ×", f"{decimals(f.get('p99_ms'), 1)} ms",
                _("yes") if row.get("front") else _("no"),
            ]
            for name, row, f in zip(names, rows, figures, strict=True)
        ],
    )  # fmt: skip
    return Chart([line, points], layout, table=table, final=True)


def _speed(figures: dict) -> float:
    """Next to the parent's. Trails of earlier releases have one for each number of answers at a time."""
    ratio = figures.get("speed_ratio") or 1.0
    return ratio.get("batch_8", 1.0) if isinstance(ratio, dict) else ratio
