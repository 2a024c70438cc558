"""Figures for the pages, as plain dictionaries in plotly's schema. Nothing here imports plotly: the browser draws, the tests check.

Colours are names of tokens ("var(--v-c1)"), which static/js/charts.js replaces by the theme's; times are ISO 8601 in UTC, which it
turns into the reader's zone. A line's value stands at its end; there is no legend.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

Number = float | int | None

CLEAR = "rgba(0,0,0,0)"
LINE_WIDTH = 1.5
LABEL_HEIGHT = 15  # px two labels keep between them
HEIGHTS = {"s": 132, "m": 220, "l": 340}  # of .chart-plot in static/css/data.css
TOP, BOTTOM = 10, 24  # px of margin
TICK_GAP = 5  # px between the plot and its labels
MARK_ROWS, MARK_ROW_HEIGHT = 2, 13  # names of marks that follow one another, in px
LATE = 0.8  # of the axis: a mark beyond has its name on its left, where no line's end has its own
THIN = 0.06  # of what is stacked: a thinner band has no name at its end
ROW_HEIGHT = 20  # px of a heat map's row
HEAT = [[0.0, "var(--heat-0)"], [0.33, "var(--heat-1)"], [0.66, "var(--heat-2)"], [1.0, "var(--heat-3)"]]


@dataclass(frozen=True)
class Table:
    """What stands behind a chart, in words already formatted for the reader."""

    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Chart:
    """`now`: the figure beside the title. `empty`: a word in place of the plot. `final`: nothing will change any more.
    `link`: where a click on a point leads, with {x} for the point's place.
    """

    data: list[dict[str, Any]] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)
    now: str = ""
    table: Table | None = None
    empty: str = ""
    final: bool = False
    link: str = ""

    def as_json(self) -> dict[str, Any]:
        table = {"head": self.table.head, "rows": self.table.rows} if self.table else None
        return {
            "data": self.data,
            "layout": self.layout,
            "now": self.now,
            "table": table,
            "empty": self.empty,
            "final": self.final,
            "link": self.link,
        }


@dataclass(frozen=True)
class Line:
    name: str
    x: Sequence[Any]
    y: Sequence[Number]
    colour: str = "var(--accent)"
    label: str = ""  # at its end; the name where nothing is given and there are several lines
    hover: str = "%{y:.3~r}"
    dash: str = "solid"


@dataclass(frozen=True)
class Threshold:
    """A dashed line. It is in the picture once the values come near it, so that a calm line does not lie flat at the bottom."""

    value: float
    label: str
    near: float = 0.2


@dataclass(frozen=True)
class Mark:
    """A dotted upright: something happened at `x`."""

    x: Any
    label: str
    colour: str = "var(--soft)"


@dataclass(frozen=True)
class Span:
    """A shaded stretch, such as the time an alert was firing."""

    x0: Any
    x1: Any
    colour: str = "var(--bad-soft)"


def line_chart(
    lines: Sequence[Line],
    *,
    size: str = "m",
    dates: bool = False,
    zero: bool = True,
    ceiling: float | None = None,
    least: float = 0.0,
    x_title: str = "",
    x_range: Sequence[Any] | None = None,
    suffix: str = "",
    tick_format: str = "",
    threshold: Threshold | None = None,
    marks: Sequence[Mark] = (),
    spans: Sequence[Span] = (),
    now: str = "",
    table: Table | None = None,
    empty: str = "",
    final: bool = False,
    link: str = "",
    right: int = 12,
    stacked: bool = False,
) -> Chart:
    """Lines over time or steps. `empty` is shown where no line holds a value. `right`: the least margin there, so that charts below each other share an
    axis. `least`: the axis reaches so far even if all is smaller, so that nothing looks like something. `stacked`: parts of a whole, as bars on each
    other, all of the same places."""
    values = [y for line in lines for y in line.y if y is not None]
    if stacked and values:
        values = [sum(y or 0.0 for y in parts) for parts in zip(*(line.y for line in lines), strict=True)]
    if not values:
        return Chart(now=now, empty=empty, final=final)
    shown = threshold if threshold and max(values) >= threshold.near * threshold.value else None
    low, high = value_range(values, zero=zero, include=[*([shown.value] if shown else []), *([least] if least else [])], ceiling=ceiling)
    several = len(lines) > 1
    ends = _bands(lines) if stacked else [(line, line.label or (line.name if several else "")) for line in lines]
    labels = end_labels(ends, low, high, HEIGHTS[size])
    shapes = [_span(s) for s in spans] + [_mark(m) for m in marks] + ([_threshold(shown)] if shown else [])
    annotations = labels + _mark_labels(marks, x_range) + ([_threshold_label(shown)] if shown else [])
    right = max(right, 12 + max((_width(a["text"]) for a in labels), default=0))
    layout = base_layout(size=size, right=right, dates=dates)
    layout["yaxis"] |= {"range": [low, high], "ticksuffix": suffix, **({"tickformat": tick_format} if tick_format else {})}
    layout["xaxis"] |= {**({"title": {"text": x_title, "standoff": 4}} if x_title else {}), **({"range": list(x_range)} if x_range else {})}
    if x_title:
        layout["margin"]["b"] = BOTTOM + 16
    if stacked:
        layout |= {"barmode": "stack", "bargap": 0, "hovermode": "x unified"}  # one box: the bands' own would lie on each other
    layout |= {"shapes": shapes, "annotations": annotations}
    return Chart([_bar(line) if stacked else _trace(line) for line in lines], layout, now, table, "", final, link)


def base_layout(*, size: str = "m", right: int = 12, dates: bool = False) -> dict[str, Any]:
    """No frame, a faint horizontal grid, words in the page's own type."""
    x: dict[str, Any] = {
        "showgrid": False, "zeroline": False, "showline": False, "automargin": False, "nticks": 6, "fixedrange": False,
        "ticks": "outside", "ticklen": TICK_GAP, "tickcolor": CLEAR,  # unseen: they keep the first label off the axis' zero
        "showspikes": True, "spikemode": "across", "spikethickness": 1, "spikedash": "solid", "spikecolor": "var(--line-strong)", "spikesnap": "hovered data",
    }  # fmt: skip
    if dates:
        x |= {
            "type": "date",
            "nticks": 5,
            "tickangle": 0,
            "tickformatstops": [
                {"dtickrange": [None, 59_999], "value": "%H:%M:%S"},
                {"dtickrange": [60_000, 86_399_999], "value": "%H:%M"},
                {"dtickrange": [86_400_000, "M1"], "value": "%m-%d"},
                {"dtickrange": ["M1", None], "value": "%Y-%m"},
            ],
            "hoverformat": "%m-%d %H:%M:%S",
        }
    return {
        "height": HEIGHTS[size], "margin": {"l": 46, "r": right, "t": TOP, "b": BOTTOM}, "paper_bgcolor": CLEAR, "plot_bgcolor": CLEAR,
        "font": {"family": "var(--font)", "size": 12, "color": "var(--soft)"}, "showlegend": False, "hovermode": "x", "dragmode": "zoom",
        "hoverlabel": {"bgcolor": "var(--surface)", "bordercolor": "var(--line-strong)", "font": {"family": "var(--font)", "size": 12, "color": "var(--ink)"}},
        "xaxis": x,
        "yaxis": {
            "gridcolor": "var(--line)", "gridwidth": 1, "zeroline": False, "showline": False, "ticks": "", "fixedrange": True,
            "nticks": 3 if size == "s" else 5, "automargin": False,
        },
    }  # fmt: skip


def value_range(values: Sequence[float], *, zero: bool, include: Sequence[float] = (), ceiling: float | None = None) -> tuple[float, float]:
    """Lowest and highest of the axis, with air above; never a span of nothing."""
    low, high = min([*values, *include]), max([*values, *include])
    low = min(0.0, low) if zero else low
    air = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    top = high + air
    return (low if zero else low - air), (min(top, ceiling * 1.02) if ceiling is not None else top)


def end_labels(lines: Sequence[tuple[Line, str]], low: float, high: float, height: int) -> list[dict[str, Any]]:
    """Annotations where the lines end, moved apart where they would lie on each other, and kept inside the plot."""
    plot = height - TOP - BOTTOM
    pixels = plot / (high - low)
    xs = [x for line, _text in lines for x in (line.x[0], line.x[-1]) if line.x and isinstance(x, int | float)]
    near = (max(xs) - min(xs)) * 0.08 if xs else 0.0
    columns: list[tuple[Any, list[tuple[float, str, str]]]] = []  # lines that end near one another in time share a column
    for line, text in lines:
        at = next((i for i in reversed(range(len(line.y))) if line.y[i] is not None), None)
        if not text or at is None:
            continue
        x, end = line.x[at], (line.y[at], text, line.colour)
        found = next((c for c in columns if not xs or abs(c[0] - x) <= near), None)
        if found:
            found[1].append(end)
            columns[columns.index(found)] = (max(found[0], x), found[1])
        else:
            columns.append((x, [end]))
    labels = []
    for x, ends in columns:
        ends.sort(key=lambda end: end[0])
        wanted = [(value - low) * pixels for value, _text, _colour in ends]
        placed = spread(wanted, LABEL_HEIGHT)
        lift = max(0.0, LABEL_HEIGHT / 2 - placed[0])
        placed = [at + lift for at in placed]
        sink = max(0.0, placed[-1] - plot)
        at_edge = not xs or x >= max(xs) - near
        for (value, text, colour), want, at in zip(ends, wanted, placed, strict=True):
            labels.append(
                {
                    **({"xref": "paper", "x": 1} if at_edge else {"xref": "x", "x": x, "bgcolor": "var(--surface)"}),
                    "xanchor": "left",
                    "xshift": 4,
                    "yref": "y",
                    "y": value,
                    "yanchor": "middle",
                    "yshift": round(at - sink - want, 1),
                    "text": text,
                    "showarrow": False,
                    "font": {"color": colour, "size": 12},
                }
            )
    return labels


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions, ascending as `wanted` is, at least `gap` apart and as near to `wanted` as one pass of averaging brings them."""
    groups: list[list[float]] = []  # each: sum of what its members want for its first one, how many, first position
    for position in wanted:
        groups.append([position, 1.0, position])
        while len(groups) > 1 and groups[-1][2] - (groups[-2][2] + groups[-2][1] * gap) < 0:
            later, earlier = groups.pop(), groups.pop()
            total = earlier[0] + later[0] - later[1] * earlier[1] * gap
            count = earlier[1] + later[1]
            groups.append([total, count, total / count])
    return [group[2] + index * gap for group in groups for index in range(int(group[1]))]


def thin(x: Sequence[Any], y: Sequence[Number], points: int = 600) -> tuple[list[Any], list[Number]]:
    """At most about `points` of the points, among them every stretch's lowest and highest: a spike is never lost."""
    if len(y) <= points:
        return list(x), list(y)
    chosen = {0, len(y) - 1}
    stretch = len(y) / (points // 2 - 1)
    for part in range(points // 2 - 1):
        indices = range(int(part * stretch), int((part + 1) * stretch))
        known = [i for i in indices if y[i] is not None]
        if known:
            chosen |= {min(known, key=lambda i: y[i] or 0.0), max(known, key=lambda i: y[i] or 0.0)}
        elif indices:
            chosen.add(indices[0])  # the gap stays a gap
    kept = sorted(chosen)
    return [x[i] for i in kept], [y[i] for i in kept]


def heat_chart(
    z: Sequence[Sequence[float]], *, x: Sequence[str], y: Sequence[str], hover: str, low: float, high: float, size: str = "m",
    now: str = "", table: Table | None = None, final: bool = False,
) -> Chart:  # fmt: skip
    """One hue from nothing to much; rows are drawn from the top down. Many rows make it taller."""
    layout = base_layout(size=size, right=8)
    layout["height"] = max(HEIGHTS[size] if size != "l" else 0, TOP + BOTTOM + ROW_HEIGHT * len(y))
    layout["margin"]["l"] = 12 + max(_width(name) for name in y)
    layout["xaxis"] = {"type": "category", "showgrid": False, "ticks": "", "fixedrange": True, "side": "bottom", "showline": False, "zeroline": False}
    layout["yaxis"] = {
        "type": "category",
        "autorange": "reversed",
        "showgrid": False,
        "ticks": "",
        "fixedrange": True,
        "showline": False,
        "zeroline": False,
    }
    layout["hovermode"] = "closest"
    trace = {
        "type": "heatmap", "z": [list(row) for row in z], "x": list(x), "y": list(y), "zmin": low, "zmax": high, "colorscale": HEAT, "showscale": False,
        "xgap": 2, "ygap": 2, "hovertemplate": f"{hover}<extra></extra>",
    }  # fmt: skip
    return Chart([trace], layout, now, table, "", final)


def _trace(line: Line) -> dict[str, Any]:
    lonely = any(
        y is not None and (i == 0 or line.y[i - 1] is None) and (i + 1 == len(line.y) or line.y[i + 1] is None) for i, y in enumerate(line.y)
    )
    trace: dict[str, Any] = {
        "type": "scatter", "name": line.name, "x": list(line.x), "y": [None if y is None else _finite(y) for y in line.y],
        # A value between two gaps has no line to be seen by.
        "mode": "lines+markers" if lonely else "lines", "marker": {"size": 4, "color": line.colour},
        "line": {"color": line.colour, "width": LINE_WIDTH, "dash": line.dash}, "connectgaps": False,
        "hovertemplate": f"{line.hover}<extra></extra>" if not line.label and not line.name else f"{line.name} {line.hover}<extra></extra>",
    }  # fmt: skip
    return trace


def _bar(line: Line) -> dict[str, Any]:
    return {
        "type": "bar", "name": line.name, "x": list(line.x), "y": [_finite(y) if y else None for y in line.y],
        "marker": {"color": line.colour, "line": {"width": 0}}, "hovertemplate": f"{line.name} {line.hover}<extra></extra>",
    }  # fmt: skip


def _bands(lines: Sequence[Line]) -> list[tuple[Line, str]]:
    """Where the last bar has the middle of each line's part, with its name."""
    last = next(i for i in reversed(range(len(lines[0].y))) if any(line.y[i] is not None for line in lines))
    parts = [line.y[last] or 0.0 for line in lines]
    middles = [sum(parts[:at]) + part / 2 for at, part in enumerate(parts)]
    return [
        (replace(line, x=[line.x[last]], y=[middle], colour="var(--soft)"), line.name)
        for line, part, middle in zip(lines, parts, middles, strict=True)
        if part > THIN * sum(parts)
    ]


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _mark(mark: Mark) -> dict[str, Any]:
    return {
        "type": "line", "xref": "x", "yref": "paper", "x0": mark.x, "x1": mark.x, "y0": 0, "y1": 1,
        "line": {"color": mark.colour, "width": 1.5, "dash": "dot"},
    }  # fmt: skip


def _mark_labels(marks: Sequence[Mark], x_range: Sequence[Any] | None) -> list[dict[str, Any]]:
    """In turn on two rows, so that two marks close to each other can be told apart."""
    return [
        {
            "xref": "x", "yref": "paper", "x": mark.x, "y": 1, "yanchor": "top", "yshift": -(n % MARK_ROWS) * MARK_ROW_HEIGHT, "text": mark.label,
            "showarrow": False, "bgcolor": "var(--surface)", "font": {"color": mark.colour, "size": 11},
            **({"xanchor": "right", "xshift": -2} if _is_late(mark.x, x_range) else {"xanchor": "left", "xshift": 2}),
        }
        for n, mark in enumerate(marks)
    ]  # fmt: skip


def _is_late(x: Any, x_range: Sequence[Any] | None) -> bool:
    if not x_range:
        return False
    at, first, last = (datetime.fromisoformat(value).timestamp() if isinstance(value, str) else value for value in (x, *x_range))
    return at > first + LATE * (last - first)


def _span(span: Span) -> dict[str, Any]:
    return {
        "type": "rect", "xref": "x", "yref": "paper", "x0": span.x0, "x1": span.x1, "y0": 0, "y1": 1, "fillcolor": span.colour, "line": {"width": 0},
        "layer": "below",
    }  # fmt: skip


def _threshold(threshold: Threshold) -> dict[str, Any]:
    return {
        "type": "line", "xref": "paper", "yref": "y", "x0": 0, "x1": 1, "y0": threshold.value, "y1": threshold.value,
        "line": {"color": "var(--bad)", "width": 1, "dash": "4px,4px"},
    }  # fmt: skip


def _threshold_label(threshold: Threshold) -> dict[str, Any]:
    return {
        "xref": "paper", "yref": "y", "x": 1, "y": threshold.value, "xanchor": "right", "yanchor": "bottom", "xshift": -2, "text": threshold.label,
        "showarrow": False, "font": {"color": "var(--bad)", "size": 11},
    }  # fmt: skip


def _width(text: str) -> int:
    """Pixels a label takes, roughly: a wide character counts twice."""
    return round(sum(13 if ord(c) > 0x2E80 else 7 for c in text)) + 6
