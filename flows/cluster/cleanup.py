"""What this process holds on Ray: whoever holds something registers how it is given back.

So a session can give back all of it, and one holder what the others keep from it, without knowing who they are.
"""

from collections.abc import Callable

Release = Callable[[], None]
_holders: list[Release] = []


def holds(release: Release) -> None:
    """Notes that ``release`` gives something back, until it is called from here. A second time changes nothing."""
    if release not in _holders:
        _holders.append(release)


def release_all(but: Release | None = None) -> None:
    """Calls what was registered, in that order, except for ``but``, which stays registered.

    Where one fails the others are called still, and then the first error is raised.
    """
    errors: list[Exception] = []
    for release in [held for held in _holders if held is not but]:
        _holders.remove(release)
        try:
            release()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]
