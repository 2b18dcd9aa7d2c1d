"""Scales, ticks, histograms and the lineage's layout."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.report.lineage_graph import BOX, draw
from alignment.report.run_report import Edge, LineageReport, Node
from alignment.report.svg import Plane, histogram, nice_ticks, padded

numbers = st.floats(-1e6, 1e6, allow_nan=False)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 100, ["0", "20", "40", "60", "80", "100"]),
        (0.48, 0.72, ["0.50", "0.55", "0.60", "0.65", "0.70"]),
        (-4.1, 4.1, ["−4", "−2", "0", "2", "4"]),
        (0, 1e4, ["0", "2,000", "4,000", "6,000", "8,000", "10,000"]),
    ],
)
def test_ticks_are_round(low: float, high: float, labels: list[str]) -> None:
    assert [text for _value, text in nice_ticks(low, high)] == labels


@given(numbers, st.floats(1e-3, 1e6))
def test_ticks_lie_within_their_range_and_are_few(low: float, width: float) -> None:
    high = low + width
    ticks = [value for value, _text in nice_ticks(low, high)]
    assert 1 <= len(ticks) <= 11
    assert all(low - 1e-6 * width <= value <= high + 1e-6 * width for value in ticks)


@given(st.lists(numbers, min_size=1), st.integers(1, 30))
def test_a_histogram_counts_everything_once(values: list[float], bins: int) -> None:
    assert sum(histogram(values, *padded(values), bins)) == len(values)


def test_histogram_by_hand() -> None:
    assert histogram([0.0, 0.9, 1.0, 1.99, 2.0, -5.0], 0, 2, 2) == [3, 3]


def test_a_plane_puts_larger_values_higher() -> None:
    plane = Plane((0, 10), (0, 1))
    assert plane.x(0) == plane.left
    assert plane.x(10) == plane.right
    assert plane.y(1) == plane.top < plane.y(0) == plane.bottom


PAIRS = list(combinations(range(9), 2))
ROLES = ["model", "preferences", "against"]


def lineage_of(edges: set[tuple[int, int]]) -> LineageReport:
    """Nine nodes; an edge always leads from an earlier one to a later one."""
    nodes = tuple(Node(name=f"n{i}", kind="model", version=1, digest="0" * 64) for i in range(9))
    links = [Edge(source=f"n{i}@1", target=f"n{j}@1", role=ROLES[(i + j) % 3]) for i, j in sorted(edges)]
    return LineageReport(nodes=nodes, edges=tuple(links))


lineages = st.sets(st.sampled_from(PAIRS), max_size=14).map(lineage_of)
modest = settings(max_examples=25, deadline=None)


@modest
@given(lineages, st.booleans())
def test_boxes_never_overlap_and_lie_inside_the_drawing(lineage: LineageReport, downwards: bool) -> None:
    picture = draw(lineage, downwards=downwards)
    assert len(picture.boxes) == len(lineage.nodes)
    assert len(picture.links) == len(lineage.edges)
    for box in picture.boxes:
        assert 0 <= box.x <= picture.width - BOX[0]
        assert 0 <= box.y <= picture.height - BOX[1]
    for a, b in combinations(picture.boxes, 2):
        assert abs(a.x - b.x) >= BOX[0] or abs(a.y - b.y) >= BOX[1]


@pytest.mark.timeout(20)
def test_a_dense_lineage_is_drawn_in_good_time() -> None:
    assert len(draw(lineage_of(set(PAIRS))).links) == len(PAIRS)


@modest
@given(lineages)
def test_edges_lead_forwards(lineage: LineageReport) -> None:
    at = {f"{box.node.name}@1": box.x for box in draw(lineage).boxes}
    assert all(at[edge.source] < at[edge.target] for edge in lineage.edges)
