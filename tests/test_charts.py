"""Charts: the same bytes for the same numbers, inert, and told in words."""

import math
import xml.etree.ElementTree as ET

import pytest

from cai import charts, statistics
from cai.story import Curve, Series


def line(points, name="training"):
    return Curve(
        title="Loss", x_label="step", y_label="nats", series=(Series(name=name, points=points),)
    )


def every_chart():
    bins = statistics.calibration_bins([0.55, 0.65, 0.9], [1, 0, 1])
    rows = [charts.IntervalRow(name="no_shame", estimate=statistics.wilson_interval(3, 6))]
    return [
        charts.line_chart(line(((1, 2.0), (2, 1.0))), key="a"),
        charts.calibration_chart(bins, key="b", x_label="stated", y_label="correct"),
        charts.histogram([0.1, 0.5, 1.0], key="c", x_label="p", y_label="comparisons"),
        charts.interval_chart(rows, key="d", x_label="accuracy", reference=0.5),
        charts.heat_map(["a <b>", "c"], [[1.0, 0.25], [0.25, 1.0]], key="e", told="Conflicts"),
    ]


def test_same_numbers_same_bytes():
    assert [chart.svg for chart in every_chart()] == [chart.svg for chart in every_chart()]


def test_charts_are_well_formed_with_ids_of_their_own():
    seen = set()
    for chart in every_chart():
        root = ET.fromstring(chart.svg)
        assert root.get("role") == "img"
        assert root.get("aria-label") == chart.alternative
        ids = {element.get("id") for element in root.iter() if element.get("id")}
        assert not ids & seen
        seen |= ids
        used = {e.get("href")[1:] for e in root.iter("use")}
        assert used <= ids
        assert not {"script", "style", "metadata", "foreignObject"} & {e.tag for e in root.iter()}
        assert "http" not in chart.svg
        assert "#0" not in chart.svg, "a stand-in colour was left"


def test_axes_are_labelled():
    drawn = charts.line_chart(line(((1, 2.0), (2, 1.0))), key="a").svg
    assert ">step</text>" in drawn
    assert ">nats</text>" in drawn


def test_one_point_is_a_marker():
    one = charts.line_chart(line(((7, 0.25),)), key="a")
    assert "<use " in one.svg.split("axis_2")[1].split("legend")[0]
    assert one.alternative.endswith("training: 0.250 at step 7.")


def test_points_that_are_not_finite_are_left_out_and_counted():
    curve = line(((1, 1.0), (2, math.nan), (3, math.inf), (4, 2.0)))
    assert charts.num_not_finite(curve) == 2
    assert "nan" not in charts.line_chart(curve, key="a").svg
    assert charts.line_chart(line(((1, math.nan),)), key="a") is None


@pytest.mark.parametrize(
    "name",
    ["$\\frac{1}{0}$ $", "<script>alert(1)</script>", "a & b \"c\" 'd'", "\u4e2d\u202e\x1b", ""],
)
def test_names_are_text_and_nothing_else(name):
    curve = Curve(
        title=name,
        x_label=name,
        y_label=name,
        series=(Series(name=name, points=((1, 1.0),)), Series(name="b", points=((1, 2.0),))),
    )
    root = ET.fromstring(charts.line_chart(curve, key="a").svg)
    assert "script" not in {element.tag for element in root.iter()}
    rows = [charts.IntervalRow(name=name * 30, estimate=statistics.wilson_interval(3, 6))]
    ET.fromstring(charts.interval_chart(rows, key="b", x_label=name).svg)


def test_nothing_to_draw_is_none():
    assert charts.histogram([], key="a", x_label="", y_label="") is None
    assert charts.calibration_chart((), key="a", x_label="", y_label="") is None
    assert charts.interval_chart([], key="a", x_label="") is None


def test_a_heat_map_tells_the_largest_and_leaves_out_what_is_no_number():
    values = [[1.0, 0.1, 0.4], [0.1, 1.0, math.nan], [0.4, math.nan, 1.0]]
    chart = charts.heat_map(["one", "two", "three"], values, key="k", told="Conflicts")
    assert chart.alternative == "Conflicts. The largest: one and three: 0.40; one and two: 0.10."
    assert chart.svg.count(">.40<") == 2
    assert chart.svg.count("opacity: 0.65") == 2
    assert ">1.00<" not in chart.svg
    assert "nan" not in chart.svg
    names = [str(number) for number in range(charts.NUMBERED + 1)]
    many = charts.heat_map(names, [[0.3] * len(names)] * len(names), key="k", told="Many")
    assert ">.30<" not in many.svg
    assert charts.heat_map(["one"], [[1.0]], key="k", told="One") is None
