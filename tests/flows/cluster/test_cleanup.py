"""Who holds something on Ray, and the direction of the imports between those who do."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from flows.cluster import cleanup

PACKAGE = Path(cleanup.__file__).parent


@pytest.fixture(autouse=True)
def _nobody_holds_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "_holders", [])
    return


def test_everything_is_given_back_once_in_order() -> None:
    given: list[str] = []
    first, second = (lambda: given.append("workers")), (lambda: given.append("actors"))
    for release in (first, second, first):
        cleanup.holds(release)
    cleanup.release_all()
    cleanup.release_all()
    assert given == ["workers", "actors"]


def test_who_asks_for_the_others_room_keeps_its_own() -> None:
    given: list[str] = []
    mine, theirs = (lambda: given.append("mine")), (lambda: given.append("theirs"))
    cleanup.holds(mine)
    cleanup.holds(theirs)
    cleanup.release_all(but=mine)
    assert given == ["theirs"]
    cleanup.release_all()
    assert given == ["theirs", "mine"]


def test_one_that_fails_keeps_no_other_from_its_end() -> None:
    given: list[str] = []

    def fails() -> None:
        raise ConnectionError("its node is away")

    cleanup.holds(fails)
    cleanup.holds(lambda: given.append("actors"))
    with pytest.raises(ConnectionError, match="its node is away"):
        cleanup.release_all()
    assert given == ["actors"]


def test_no_import_of_the_package_closes_a_circle() -> None:
    """Imports inside functions count as well: Python's graphlib finds a circle where there is one."""
    graph: dict[str, set[str]] = {}
    for path in PACKAGE.glob("[!_]*.py"):
        imported = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "flows.cluster":
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flows.cluster."):
                imported.add(str(node.module).rpartition(".")[2])
        graph[path.stem] = imported
    order = list(TopologicalSorter(graph).static_order())  # CycleError where there is a circle
    assert order.index("ray_session") < order.index("train_workers") < order.index("train_loop")
    assert graph["cleanup"] == set()
