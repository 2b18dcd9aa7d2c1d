"""Rooms on a small disk of their own, where one may be mounted."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.flows.faults.room import MakeRoom, Room, small_disk


@pytest.fixture(scope="module")
def make_room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeRoom]:
    """Makes a room around a recipe, and clears up all that was started in it."""
    with ExitStack() as left:

        def make(recipe: Path) -> Room:
            folder = Path(tempfile.mkdtemp(prefix="faults-", dir=tmp_path_factory.getbasetemp()))
            mounted = left.enter_context(small_disk(folder / "disk"))
            room = Room(recipe, folder / "disk" / "workspace", folder / "logs", folder / "disk" if mounted else None)
            left.callback(room.commands.close)
            return room

        yield make
