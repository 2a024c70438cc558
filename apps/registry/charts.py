"""Size × BLEU × speed of all variants."""

from collections.abc import Sequence

from django.urls import reverse
from django.utils.translation import gettext as _

from apps.monitoring.figures import Chart, Table, base_layout
from apps.portal.templatetags.portal import decimals, short, size
from apps.registry.models import Evaluation, ModelVersion

SMALLEST, LARGEST = 9, 34  # px of a point's diameter
NEAR_SIZE, NEAR_BLEU = 0.35, 2.5  # points nearer than this share of the axis, or so many points, would write over each other


def variants(found: Sequence[tuple[ModelVersion, Evaluation]]) -> Chart:
    """A point a version: across its size, up its BLEU with the 95 % interval, its area the tokens per second it answers with. A ring: no other beats it
    in all three."""
    if not found:
        return Chart(empty=_("No version has been evaluated yet. A version that is trained or compressed is evaluated by itself."))
    rows = sorted(found, key=lambda pair: -pair[1].metrics["bleu"])
    speeds = [e.metrics.get("tokens_per_second") or 0.0 for _version, e in rows]
    fastest = max(speeds) or 1.0
    bleu = [e.metrics["bleu"] for _version, e in rows]
    megabytes = [v.artifact_bytes / 1e6 for v, _evaluation in rows]
    front = _front(list(zip(megabytes, bleu, speeds, strict=True)))
    trace = {
        "type": "scatter", "mode": "markers+text", "x": [round(value, 3) for value in megabytes], "y": [round(value, 2) for value in bleu],
        "text": [v.name for v, _evaluation in rows], "textposition": _positions(megabytes, bleu), "cliponaxis": False,
        "textfont": {"color": [f"var(--v-c{v.colour})" for v, _evaluation in rows], "size": 12},
        "marker": {
            "color": [f"var(--v-c{v.colour})" for v, _evaluation in rows], "opacity": 0.75,
            "line": {"width": [3 if on else 1 for on in front], "color": ["var(--ink)" if on else "var(--surface)" for on in front]},
            "size": [round(SMALLEST + (LARGEST - SMALLEST) * (speed / fastest) ** 0.5, 1) for speed in speeds],
        },
        "error_y": {
            "type": "data", "symmetric": False, "array": [e.metrics.get("bleu_high", b) - b for (_v, e), b in zip(rows, bleu, strict=True)],
            "arrayminus": [b - e.metrics.get("bleu_low", b) for (_v, e), b in zip(rows, bleu, strict=True)], "color": "var(--line-strong)", "thickness": 1, "width": 0,
        },
        "customdata": [reverse("version", args=[v.pk]) for v, _evaluation in rows],
        "hovertemplate": [
            f"{v.name}<br>BLEU {b:.1f}<br>{size(v.artifact_bytes)}<br>{_('%(n)s tokens/s') % {'n': short(speed)}}<extra></extra>"
            for (v, _evaluation), b, speed in zip(rows, bleu, speeds, strict=True)
        ],
    }  # fmt: skip
    layout = base_layout(size="l", right=90)
    layout["hovermode"] = "closest"
    lows = [e.metrics.get("bleu_low", b) for (_v, e), b in zip(rows, bleu, strict=True)]
    highs = [e.metrics.get("bleu_high", b) for (_v, e), b in zip(rows, bleu, strict=True)]
    layout["xaxis"] |= {
        "title": {"text": _("size in MB"), "standoff": 6},
        "range": [0, max(megabytes) * 1.12 or 1],
        "showspikes": False,
        "fixedrange": True,
    }
    layout["yaxis"] |= {"title": {"text": "BLEU", "standoff": 4}, "range": [max(0.0, min(lows) - 4), min(102.0, max(highs) + 5)]}
    layout["margin"] |= {"b": 42, "l": 52}
    # xgettext:no-python-format
    interval = _("95 % interval")
    table = Table(
        [_("Version"), _("Size"), "BLEU", interval, _("Tokens/s"), _("Parameters"), _("On the front")],
        [
            [
                v.name, size(v.artifact_bytes), decimals(b, 1), f"{decimals(e.metrics.get('bleu_low'), 1)} – {decimals(e.metrics.get('bleu_high'), 1)}",
                decimals(speed, 0), short(v.total_parameters), _("yes") if on else _("no"),
            ]
            for (v, e), b, speed, on in zip(rows, bleu, speeds, front, strict=True)
        ],
    )  # fmt: skip
    return Chart([trace], layout, table=table, final=True)


def _front(points: Sequence[tuple[float, float, float]]) -> list[bool]:
    """Which points no other beats. A point: size, BLEU, tokens per second."""

    def beats(other: tuple[float, float, float], one: tuple[float, float, float]) -> bool:
        return other != one and other[0] <= one[0] and other[1] >= one[1] and other[2] >= one[2]

    return [not any(beats(other, one) for other in points) for one in points]


def _positions(x: Sequence[float], y: Sequence[float]) -> list[str]:
    """Names stand to the right of their points; of two that nearly coincide, the lower one's goes below."""
    reach = max(x) * NEAR_SIZE
    out: list[str] = []
    for i in range(len(x)):
        near = [out[j] for j in range(i) if abs(x[j] - x[i]) < reach and abs(y[j] - y[i]) < NEAR_BLEU]
        out.append(next(p for p in ("middle right", "bottom center", "top center", "middle left") if p not in near or p == "middle left"))
    return out
