"""A tiny pipeline that is killed at random moments, over and over: whatever is run again ends whole.

The moments are drawn over the whole of a run: imports, the server's and the registry's migrations, every stage, the
registration and the report. Half of those that are killed are run again undisturbed, which must leave everything as one
undisturbed run leaves it (:mod:`whole`); the others are killed again. What was whole is then forgotten in part or in
all. A share of the kills is in workspaces that begin empty, in processes that start from nothing, servers and all.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.flows.faults.killer import SMALL, Killer
from tests.flows.faults.room import MakeRoom

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture
def killer(
    make_recipe: Callable[..., Path], make_room: MakeRoom, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Killer]:
    made = Killer(make_room(make_recipe(tmp_path / "recipe", changes=SMALL)), request.param)
    made.undisturbed(from_nothing=request.param > 20)  # those that begin in an empty workspace
    yield made
    made.room.commands.close()


@pytest.mark.slow
@pytest.mark.parametrize("killer", [1], indirect=True)
def test_a_few_kills(killer: Killer) -> None:
    killer.kill_often(3)
    print(killer.tally)


@pytest.mark.slow
@pytest.mark.parametrize("killer", [11, 12], indirect=True)
def test_eighty_kills(killer: Killer) -> None:
    killer.kill_often(80)
    print(killer.tally)


@pytest.mark.slow
@pytest.mark.parametrize("killer", [21, 22], indirect=True)
def test_twenty_kills_in_empty_workspaces(killer: Killer) -> None:
    killer.kill_from_nothing(20)
    print(killer.tally)
