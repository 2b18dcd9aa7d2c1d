"""The lineage as a drawing: layers from the base model to the evaluation, edges that pass between boxes.

After Sugiyama et al. (1981): a node's layer is its longest path from a source; an edge over several layers runs
through a narrow lane in each; the order within a layer follows the neighbours' mean; then places are evened out.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

from alignment.report.run_report import Edge, LineageReport, Node

BOX, LANE = (136.0, 58.0), 12.0  # a node's box; the breadth that an edge takes where it passes a layer
GAP_ALONG, GAP_ACROSS, MARGIN = 46.0, 20.0, 6.0
SWEEPS = 12
EFFORT = 100_000  # pairs of edges looked at to take crossings away: about 50 ms
STRAIGHT = 8  # how much more two lanes pull at each other than a lane and a box


@dataclass(frozen=True, slots=True)
class Box:
    """A node, placed by its upper left corner."""

    node: Node
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class GraphEdge:
    """An edge as SVG path data; ``css`` is model, data or compare."""

    d: str
    css: str
    tip: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """A placed lineage."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    links: tuple[GraphEdge, ...]


def draw(lineage: LineageReport, *, downwards: bool = False) -> Drawing:
    """Places a lineage left to right, or top to bottom for narrow screens. Edges without a role are left out."""
    edges = [edge for edge in lineage.edges if edge.role]
    ids = [_id(node) for node in lineage.nodes]
    layer = _layers(ids, edges)
    chains = [_chain(edge, layer) for edge in edges]
    rows = _rows(ids, layer, chains)
    along_size, across_size = (BOX[1], BOX[0]) if downwards else BOX
    place = _across(rows, chains, set(ids), across_size)
    step = along_size + (30.0 if downwards else GAP_ALONG)

    def corner(name: str) -> tuple[float, float]:
        along, across = layer[name] * step + MARGIN, place[name] - across_size / 2 + MARGIN
        return (across, along) if downwards else (along, across)

    def point(name: str, index: int, end: bool) -> tuple[float, float]:
        along = index * step + MARGIN + (along_size if end else 0)
        return (place[name] + MARGIN, along) if downwards else (along, place[name] + MARGIN)

    links = []
    for edge, chain in zip(edges, chains, strict=True):
        first = layer[edge.source]
        points = [
            point(name, first + i, end)
            for i, name in enumerate(chain)
            for end in ((True,) if i == 0 else (False,) if i == len(chain) - 1 else (False, True))
        ]
        links.append(
            GraphEdge(_path(points, downwards), _css(edge.role), f"{edge.source} → {edge.target}: {edge.role}")
        )
    along = (max(layer.values()) + 1) * step - (step - along_size) + 2 * MARGIN
    across = max(place[name] + across_size / 2 for name in ids) + 2 * MARGIN
    across = max(across, max(place.values()) + 2 * MARGIN)
    boxes = tuple(Box(node, *corner(_id(node))) for node in lineage.nodes)
    width, height = (across, along) if downwards else (along, across)
    return Drawing(width, height, boxes, tuple(links))


def _id(node: Node) -> str:
    return f"{node.name}@{node.version}"


def _layers(ids: list[str], edges: list[Edge]) -> dict[str, int]:
    """The longest path to each node; ``ids`` come after their inputs."""
    layer = dict.fromkeys(ids, 0)
    for name in ids:
        for edge in edges:
            if edge.target == name:
                layer[name] = max(layer[name], layer[edge.source] + 1)
    return layer


def _chain(edge: Edge, layer: dict[str, int]) -> list[str]:
    """An edge's two nodes, and a lane's name for each layer between them."""
    between = range(layer[edge.source] + 1, layer[edge.target])
    return [edge.source, *(f"{edge.source}>{edge.target}#{i}" for i in between), edge.target]


def _rows(ids: list[str], layer: dict[str, int], chains: list[list[str]]) -> list[list[str]]:
    """What lies in each layer, ordered so that few edges cross."""
    rows: list[list[str]] = [[] for _ in range(max(layer.values()) + 1)]
    for name in ids:
        rows[layer[name]].append(name)
    for chain in chains:
        for i, lane in enumerate(chain[1:-1], start=1):
            rows[layer[chain[0]] + i].append(lane)
    near = _neighbours(chains)
    for sweep in range(SWEEPS):
        order = {name: i / max(len(row), 1) for row in rows for i, name in enumerate(row)}
        for row in rows if sweep % 2 == 0 else reversed(rows):
            row.sort(key=lambda name: (_mean([order[other] for other in near[name]], order[name]), name))
            order |= {name: i / max(len(row), 1) for i, name in enumerate(row)}
    _swap_crossings(rows, chains)
    return rows


def _swap_crossings(rows: list[list[str]], chains: list[list[str]]) -> None:
    """Swaps two of a row, or two edges' lanes over several layers, where that takes crossings away."""
    steps = _steps(rows, chains)
    best = _crossings(rows, steps)
    tries = EFFORT // (1 + sum(len(layer) ** 2 for layer in steps))
    improved = True
    while improved and best:
        improved = False
        for move in _moves(rows, chains):
            if tries <= 0:
                return
            tries -= 1
            _swap(rows, move)
            now = _crossings(rows, steps)
            if now < best:
                best, improved = now, True
            else:
                _swap(rows, move)


def _moves(rows: list[list[str]], chains: list[list[str]]) -> Iterator[list[tuple[str, str]]]:
    """What may be swapped: two names of one row, or several pairs at once where two edges run side by side."""
    for row in rows:
        yield from ([pair] for pair in list(combinations(row, 2)))
    for left, right in combinations(chains, 2):
        beside = [(a, b) for row in rows for a in left[1:-1] for b in right[1:-1] if a in row and b in row]
        yield from (beside[i:j] for i in range(len(beside)) for j in range(i + 2, len(beside) + 1))


def _swap(rows: list[list[str]], move: list[tuple[str, str]]) -> None:
    for a, b in move:
        row = next(row for row in rows if a in row)
        i, j = row.index(a), row.index(b)
        row[i], row[j] = b, a


def _steps(rows: list[list[str]], chains: list[list[str]]) -> list[list[tuple[str, str]]]:
    """The parts of edges between each layer and the next."""
    layer = {name: i for i, row in enumerate(rows) for name in row}
    steps: list[list[tuple[str, str]]] = [[] for _ in rows]
    for chain in chains:
        for pair in pairwise(chain):
            steps[layer[pair[0]]].append(pair)
    return steps


def _crossings(rows: list[list[str]], steps: list[list[tuple[str, str]]]) -> int:
    at = {name: i for row in rows for i, name in enumerate(row)}
    return sum((at[a] - at[c]) * (at[b] - at[d]) < 0 for layer in steps for (a, b), (c, d) in combinations(layer, 2))


def _across(rows: list[list[str]], chains: list[list[str]], boxes: set[str], size: float) -> dict[str, float]:
    """Each name's middle, across the layers: near its neighbours' mean, and clear of those beside it.

    A lane weighs its neighbouring lanes most, which keeps long edges straight.
    """
    near = _neighbours(chains)
    breadth = {name: size if name in boxes else LANE for row in rows for name in row}

    def wish(name: str) -> float:
        pull = [(place[other], 1 if {name, other} & boxes else STRAIGHT) for other in near[name]]
        return sum(value * weight for value, weight in pull) / sum(weight for _value, weight in pull) if pull else 0.0

    place: dict[str, float] = {}
    for row in rows:
        _spread(row, dict.fromkeys(row, 0.0), breadth, place)
    for sweep in range(4 * SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            _spread(row, {name: wish(name) for name in row}, breadth, place)
    lowest = min(place[name] - breadth[name] / 2 for row in rows for name in row)
    return {name: value - lowest for name, value in place.items()}


def _spread(row: list[str], wish: dict[str, float], breadth: dict[str, float], place: dict[str, float]) -> None:
    """Puts a row as near to its wishes as order and breadth allow (pool adjacent violators, in least squares)."""
    offset, offsets, before = 0.0, [], 0.0
    for i, name in enumerate(row):
        offset += (before + breadth[name]) / 2 + GAP_ACROSS if i else 0.0
        offsets.append(offset)
        before = breadth[name]
    blocks: list[tuple[float, int]] = []  # the mean of what its members wish for, and how many they are
    for name, offset in zip(row, offsets, strict=True):
        mean, size = wish[name] - offset, 1
        while blocks and blocks[-1][0] >= mean:
            other, count = blocks.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        blocks.append((mean, size))
    starts = [mean for mean, size in blocks for _ in range(size)]
    place.update({name: start + offset for name, start, offset in zip(row, starts, offsets, strict=True)})


def _neighbours(chains: list[list[str]]) -> dict[str, list[str]]:
    near: dict[str, list[str]] = defaultdict(list)
    for chain in chains:
        for left, right in pairwise(chain):
            near[left].append(right)
            near[right].append(left)
    return near


def _path(points: list[tuple[float, float]], downwards: bool) -> str:
    """Curves across the gaps, straight lines through the lanes."""
    d = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for i, ((x, y), (to_x, to_y)) in enumerate(pairwise(points)):
        if i % 2 == 1:
            d += f"L{to_x:.1f} {to_y:.1f}"
        elif downwards:
            middle = (y + to_y) / 2
            d += f"C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}"
        else:
            middle = (x + to_x) / 2
            d += f"C{middle:.1f} {y:.1f} {middle:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"
    return d


def _css(role: str) -> str:
    parts = set(role.split(", "))
    return "model" if "model" in parts else "compare" if parts <= {"against", "reference"} else "data"


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
