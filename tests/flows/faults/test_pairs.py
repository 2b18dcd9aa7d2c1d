"""Two runs of one recipe at once in one workspace: two names, each stage made once, both whole.

In workspaces that begin empty both start the servers and make the databases; in used ones they meet at the stages.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.flows.faults.killer import SMALL, STAGES, Killer, reports_of
from tests.flows.faults.room import MakeRoom
from tests.flows.faults.whole import digests_of, problems

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def killer(
    make_recipe: Callable[..., Path], make_room: MakeRoom, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Killer]:
    made = Killer(make_room(make_recipe(tmp_path_factory.mktemp("pairs") / "recipe", changes=SMALL)), 5)
    made.undisturbed(from_nothing=False)
    yield made
    made.room.commands.close()


def two_at_once(killer: Killer, *, preloaded: bool) -> None:
    room = killer.room
    before = {path.name for path in (room.root / "runs").glob("*")}
    kept = {*digests_of(room.root), *(["register"] if (room.root / "registry" / "policy" / "v1").exists() else [])}
    both = [room.commands.start("run", room.recipe, preloaded=preloaded) for _ in range(2)]
    for command in both:
        assert command.wait(600) == 0, command.said[-3000:]
        assert "Traceback" not in command.said
    assert len({path.name for path in (room.root / "runs").glob("*")} - before) == 2
    assert problems(room.root, killer.digests, killer.version) == []  # one artifact of each stage among it
    reports = reports_of(room.root, 2)
    assert len({report["run"] for report in reports}) == 2
    for name in STAGES[1:]:
        made = [stage for report in reports for stage in report["stages"] if stage["name"] == name]
        assert sorted(stage["cached"] for stage in made) == [name in kept, True], f"{name}: {made}"


@pytest.mark.slow  # it failed once in three times before the server had half a minute to be told
def test_a_pair_in_a_used_workspace(killer: Killer) -> None:
    killer.forget("made")
    two_at_once(killer, preloaded=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_pairs_in_empty_workspaces(killer: Killer, number: int) -> None:
    killer.empty()
    two_at_once(killer, preloaded=number % 2 == 1)  # these start within a hundredth of a second


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_pairs_in_used_workspaces(killer: Killer, number: int) -> None:
    killer.forget("made" if number % 2 else "later stages")
    two_at_once(killer, preloaded=True)
