"""Which version a name stands for, asked often and so cheaply."""

from collections.abc import Callable

from alignment.registry import RegisteredVersion, find
from alignment.registry.store import CHAMPION, RegistryStore
from alignment.workspace import Workspace


def following(workspace: Workspace, reference: str) -> Callable[[RegisteredVersion | None], RegisteredVersion]:
    """A function of the version that ``reference`` stood for: the one that it stands for now, its files brought here.

    A number stands for itself. An alias is one row of the registry; only where that has changed is more read. The
    function raises InputError where there is no such version any more.
    """
    name, _, alias = reference.partition("@")

    def look_up(before: RegisteredVersion | None) -> RegisteredVersion:
        if before is not None:
            if "/" in name:
                return before
            state = RegistryStore.models(workspace).get(name)
            if state is not None and state.aliases.get(alias or CHAMPION) == before.version:
                return before
        return find(workspace, reference)

    return look_up
