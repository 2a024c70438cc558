"""Figures are plotly's own schema, and tell the truth when they are thinned and labelled."""

import itertools
import math

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.monitoring.figures import LABEL_HEIGHT, Line, Mark, Span, Threshold, end_labels, heat_chart, line_chart, spread, thin, value_range


def drawn(chart) -> go.Figure:
    """Raises where plotly would not understand."""
    return go.Figure({"data": chart.data, "layout": chart.layout})


def test_a_line_chart_with_all_its_marks_is_valid_plotly():
    times = [f"2026-01-01T00:00:0{i}Z" for i in range(5)]
    chart = line_chart(
        [Line("P99", times, [100.0, None, 450.0, 90.0, 95.0]), Line("P50", times, [10.0, 11.0, 12.0, 9.0, 8.0], dash="dot")],
        size="s", dates=True, threshold=Threshold(500, "500 ms"), marks=[Mark(times[2], "v2", "var(--v-c1)")], spans=[Span(times[1], times[2])], x_range=times[::4],
    )  # fmt: skip
    figure = drawn(chart)
    assert [a.text for a in figure.layout.annotations] == ["P50", "P99", "v2", "500 ms"]
    assert {shape.type for shape in figure.layout.shapes} == {"rect", "line"}


def test_marks_close_to_each_other_have_their_names_on_two_rows_and_late_ones_on_their_left():
    times = [f"2026-01-01T00:00:{i:02}Z" for i in range(0, 60, 5)]
    marks = [Mark(times[1], "v1"), Mark(times[2], "v2"), Mark(times[-1], "v3")]
    first, second, last = line_chart([Line("", times, [1.0] * len(times))], dates=True, marks=marks, x_range=[times[0], times[-1]]).layout[
        "annotations"
    ]
    assert first["yshift"] - second["yshift"] >= first["font"]["size"]
    assert (first["xanchor"], second["xanchor"], last["xanchor"]) == ("left", "left", "right")


def test_a_heat_map_is_valid_plotly():
    drawn(heat_chart([[0.1, 0.9], [0.5, 0.5]], x=["1", "2"], y=["law", "medicine"], hover="%{z}", low=0, high=1))


def test_a_chart_without_values_says_so_instead():
    assert line_chart([Line("", [1, 2], [None, None])], empty="No request yet.").empty == "No request yet."


def test_a_threshold_far_above_the_values_is_not_drawn():
    calm = line_chart([Line("", [1, 2], [5.0, 6.0])], threshold=Threshold(500, "500 ms"))
    near = line_chart([Line("", [1, 2], [5.0, 160.0])], threshold=Threshold(500, "500 ms"))
    assert not calm.layout["shapes"]
    assert near.layout["yaxis"]["range"][1] > 500


def test_a_value_between_two_gaps_is_drawn_as_a_dot():
    assert line_chart([Line("", [1, 2, 3], [None, 4.0, None])]).data[0]["mode"] == "lines+markers"


@given(st.lists(st.floats(-1e6, 1e6) | st.none(), min_size=1, max_size=4000))
def test_thinning_keeps_the_ends_and_every_extreme(values):
    x, y = thin(range(len(values)), values, 100)
    assert len(y) <= 103
    assert (x[0], x[-1]) == (0, len(values) - 1)
    assert all(values[i] == v for i, v in zip(x, y, strict=True))
    known = [v for v in values if v is not None]
    if known:
        assert max(known) in y
        assert min(known) in y


@given(st.lists(st.floats(-500, 500), max_size=12).map(sorted))
def test_labels_are_spread_in_order_and_never_overlap(wanted):
    placed = spread(wanted, LABEL_HEIGHT)
    assert all(b - a >= LABEL_HEIGHT - 1e-6 for a, b in itertools.pairwise(placed))
    assert math.isclose(sum(placed), sum(wanted), abs_tol=1e-6) or len(wanted) > 1


def test_labels_that_have_room_stay_where_they_are():
    assert spread([0.0, 100.0, 300.0], LABEL_HEIGHT) == [0.0, 100.0, 300.0]


def test_a_line_that_ends_early_is_labelled_where_it_ends():
    labels = end_labels([(Line("a", [0, 100], [1.0, 1.0]), "a"), (Line("b", [0, 1000], [2.0, 2.0]), "b")], 0, 3, 340)
    assert labels[0]["xref"] == "x"
    assert labels[0]["x"] == 100
    assert labels[1]["xref"] == "paper"


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-3.0, -1.0]])
def test_an_axis_is_never_a_span_of_nothing(values):
    low, high = value_range(values, zero=True)
    assert low <= min(values) <= max(values) < high
