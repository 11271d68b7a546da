"""Figures show what their words say: each line the numbers of its name, at the places that the
axes name, and the world as its pictures show it."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from lewm.analyses.probing import Alike, OpenLoop
from lewm.report import canvas, sections
from lewm.report.canvas import Panel
from tests.support import results

THREE = {"rmse": (2.0, 3.0), "encoded_rmse": (0.5, 0.6), "copy_rmse": (4.0, 7.0)}


@pytest.fixture
def axes_of(monkeypatch):
    """A result -> title -> the axes of its figures."""

    def drawn(result):
        found = {}

        def draw(title, draw_on, height=None):
            found[title] = Figure().add_subplot()
            draw_on(found[title])
            return Panel(title, "<svg/>")

        monkeypatch.setattr(canvas, "draw", draw)
        sections.draw(result)
        return found

    return drawn


def named(axes):
    """Label -> (n, 2) points of the line."""
    lines = {str(line.get_label()): line.get_xydata() for line in axes.get_lines()}
    return {label: points for label, points in lines.items() if not label.startswith("_")}


def test_a_map_lies_as_in_the_picture(axes_of):
    """x to the right and y down."""
    ways = axes_of(results.planning())["1 plans, imagined and carried out"]
    places = axes_of(results.probing())["true x and y"]
    for axes, x, y in ((ways, "x, px", "y, px"), (places, "x, px", "y, px")):
        assert (axes.get_xlabel(), axes.get_ylabel()) == (x, y)
        assert axes.yaxis_inverted()
        assert not axes.xaxis_inverted()
    assert (*ways.get_xlim(), *ways.get_ylim()) == (0, 100, 100, 0)
    result = results.probing()
    np.testing.assert_array_equal(places.collections[0].get_offsets(), result.states)


def test_plans_are_drawn_where_they_were_imagined_and_where_they_went(axes_of):
    imagined = np.array([[[10.0, 20], [30, 40], [50, 45]]], np.float32)
    real = np.array([[[10.0, 20], [31, 42], [56, 49]]], np.float32)
    result = results.planning(imagined=imagined, real=real)
    course, way, start = axes_of(result)["1 plans, imagined and carried out"].get_lines()
    np.testing.assert_array_equal(way.get_xydata(), imagined[0])
    np.testing.assert_array_equal(course.get_xydata(), real[0])
    np.testing.assert_array_equal(start.get_xydata(), real[0, :1])


def test_bars_of_cost_end_at_their_numbers(axes_of):
    plan = next(iter(results.economy().plans.values()))
    plans = {"CEM": plan, "MPPI": replace(plan, seconds=0.125, steps=5, flops=3 * 10**8)}
    result = results.economy(plans=plans, published=())
    drawn = axes_of(result)
    for title, unit, expected in (
        ("time per plan", "s per plan", [of.seconds for of in plans.values()]),
        ("arithmetic of this run, counted", "GFLOP", [0.0151, 0.0005, 10, 0.3]),
    ):
        axes = drawn[title]
        assert axes.get_xlabel().startswith(unit)
        ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
        np.testing.assert_allclose(ends, expected)


def test_errors_of_predictions_are_drawn_under_their_names_over_env_steps(axes_of):
    ends = ((1.8, 2.2), (2.7, 3.3))
    of = Alike(unit="px", rmse_interval=ends, variables=("x", "y"), **THREE)
    rollout = OpenLoop(steps=(5, 10), rollouts=9, episodes=9, units={"px": of})
    axes = axes_of(results.probing(rollout=rollout))["open-loop error in px: x, y"]
    lines = named(axes)
    for label, name in (
        ("predicted", "rmse"),
        ("frame that came, encoded", "encoded_rmse"),
        ("last frame copied", "copy_rmse"),
    ):
        np.testing.assert_array_equal(lines[label], np.column_stack([(5, 10), THREE[name]]))
    assert axes.get_xlabel().startswith("env steps")


def test_errors_of_imagined_pictures_are_drawn_under_their_names_over_env_steps(axes_of):
    result = results.decoding(horizon=1)
    axes = axes_of(result)["error of imagined pictures, 64 episodes"]
    lines, found = named(axes), result.imagination
    for label, course in (
        ("imagined", found.imagined),
        ("encoded (decoder alone)", found.encoded),
        ("nearest frame", found.nearest),
        ("first frame kept", found.copy),
    ):
        np.testing.assert_array_equal(lines[label], np.column_stack([(0, 5), course.share]))
    assert axes.get_xlabel().startswith("env steps")
