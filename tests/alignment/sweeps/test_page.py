"""The page of a sweep: every figure of its report stands on it, drawn where it belongs."""

import math

import pytest

from alignment.report.svg import Dot, Label
from alignment.sweeps.figures import behind_plot, setting_plots
from alignment.sweeps.page import render_sweep
from alignment.sweeps.report import SweepReport
from tests.alignment.sweeps.reports import simulated_report


@pytest.fixture(scope="module")
def report() -> SweepReport:
    return simulated_report("stages.dpo.beta=0.01,0.1,1", "stages.dpo.loss=sigmoid,ipo")


def test_every_variant_and_every_pair_is_told(report: SweepReport) -> None:
    page = render_sweep(report)
    assert report.comparison is not None
    for one in report.variants:
        assert page.count(one.name) >= 1
    rows = page.split('<section id="pairs">')[1].split("</section>")[0].count("<tr>") - 1
    compared = len(report.comparison.means)
    assert rows == compared * (compared - 1) // 2
    assert "loss &lt;nan&gt;" in page  # others' words are escaped
    assert "<nan>" not in page


def test_a_setting_over_two_powers_of_ten_is_drawn_by_its_logarithm(report: SweepReport) -> None:
    """As far from 0.01 to 0.1 as from there to 1; settings that are no numbers have no curve."""
    [plot] = setting_plots(report)
    assert plot.title == "Along beta"
    ticks = {one.text: one.x for one in plot.shapes if isinstance(one, Label) and one.text in ("0.01", "0.1", "1")}
    assert ticks["0.1"] - ticks["0.01"] == pytest.approx(ticks["1"] - ticks["0.1"])
    large = [one for one in plot.shapes if isinstance(one, Dot) and one.radius == 5]
    small = [one for one in plot.shapes if isinstance(one, Dot) and one.radius < 5]
    assert report.comparison is not None
    assert len(large) == len(report.comparison.means)
    assert len(small) == 3 * len(large)
    # Higher is further up.
    best = next(one for one in large if one.tip.startswith(report.comparison.best))
    assert best.y == min(one.y for one in large)


def test_a_linear_axis_is_linear() -> None:
    found = simulated_report("stages.sft.epochs=1,2,4,5", seeds=1)
    [plot] = setting_plots(found)
    ticks = {one.text: one.x for one in plot.shapes if isinstance(one, Label) and one.text in ("1", "2", "4")}
    assert (ticks["4"] - ticks["1"]) == pytest.approx(3 * (ticks["2"] - ticks["1"]))


def test_variants_are_drawn_as_far_behind_as_they_are(report: SweepReport) -> None:
    plot = behind_plot(report)
    assert plot is not None
    marks = [one for one in plot.shapes if isinstance(one, Dot)]
    behind = sorted(one.behind.value for one in report.variants if one.behind is not None)
    assert len(marks) == len(behind)
    reach = [(one.x - marks[0].x) / (behind[0] - lead) for one, lead in zip(marks[1:], behind[1:], strict=True)]
    assert all(math.isclose(one, reach[0], rel_tol=1e-6) for one in reach)
    assert reach[0] > 0


def test_who_was_stopped_is_told_with_whom_was_ahead() -> None:
    found = simulated_report("stages.dpo.beta=0.1,0.2,0.3,0.4", strengths=[1.0, 0.9, -3.0])
    assert [stop.variant for stop in found.stops] == ["beta=0.3"]
    page = render_sweep(found)
    stopped = page.split('<section id="stops">')[1].split("</section>")[0]
    assert "beta=0.3" in stopped
    assert found.stops[0].by in stopped


def test_the_verdict_says_what_can_be_told() -> None:
    clear = simulated_report("stages.dpo.beta=0.1,0.2,0.3", strengths=[3.0, -3.0], seeds=2)
    assert clear.verdict == "beta=0.1 is better than the other variant."
    close = simulated_report("stages.dpo.beta=0.1,0.2,0.3", strengths=[0.0, 0.0], seeds=2)
    assert close.comparison is not None
    [other] = close.comparison.alike
    assert close.verdict == f"{close.comparison.best} has the highest mean; {other} is not told apart from it."
