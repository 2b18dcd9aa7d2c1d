"""Work that falls into pieces, none of which depends on another: done here one by one, or by others side by side.

A stage says how to build what does one piece (it loads a model, say), and hands its pieces over with their places. What
comes back comes in any order, so each result is kept as a checkpoint when it comes (:func:`all_of`). A piece's result
depends on nothing but the piece, the settings and the context: not on who does it, nor on what was done before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias, TypeVar

Result = TypeVar("Result")
Do: TypeAlias = Callable[[Any], Any]
Build: TypeAlias = Callable[[Any, Any], Do]
"""Makes, of a stage's settings and context, the function that does a piece. A module's function: it may travel."""
Each: TypeAlias = Callable[[Mapping[int, Any]], Iterator[tuple[int, Any]]]
"""Does the pieces, given by their places; yields (place, result) as they are done."""
Pool: TypeAlias = Callable[[Build, Any, Any], AbstractContextManager[Each]]
"""Who does them, for as long as the context lasts: (build, settings, context)."""


@contextmanager
def here(build: Build, settings: Any, context: Any) -> Iterator[Each]:
    """A pool of one: this process."""
    do = build(settings, context)

    def each(pieces: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        for place, piece in pieces.items():
            yield place, do(piece)

    yield each


def all_of(
    pieces: Sequence[Any],
    build: Build,
    settings: Any,
    context: Any,
    *,
    read: Callable[[int], Result | None],
    write: Callable[[int, Result], None],
    heard: Callable[[Result], None],
    pool: Pool | None = None,
) -> list[Result]:
    """Every piece's result, in their order: what ``read`` finds of an earlier run, else what the stage's pool makes.

    ``write`` keeps a result as soon as it is there, and ``heard`` is told of it, in whatever order they come. Both
    ``read`` and ``write`` are given a piece's place.
    """
    found: dict[int, Result] = {}
    for place in range(len(pieces)):
        if (kept := read(place)) is not None:
            found[place] = kept
            heard(kept)
    missing = {place: piece for place, piece in enumerate(pieces) if place not in found}
    if missing:
        with (pool or context.pool)(build, settings, context) as each, context.working():
            for place, result in each(missing):
                write(place, result)
                found[place] = result
                heard(result)
    return [found[place] for place in range(len(pieces))]
