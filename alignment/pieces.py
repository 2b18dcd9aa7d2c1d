"""Work that falls into pieces, none of which depends on another: done here one by one, or by others side by side.

A stage says how to build what does one piece (it loads a model, say), and hands its pieces over with their places. What
comes back comes in any order, so a stage keeps each result as its checkpoint when it comes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

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
