"""Train and held out, decided by the content alone.

Each item is placed by a digest of its conversation's opening: the same prompt lands on the same side in every file, in
any order, whatever else is there. The opening, not the whole prompt, because the turns of one conversation (or the
branches of one message tree) quote each other: the answer to a held-out prompt would otherwise be trained on as part
of a longer conversation.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from alignment.recipe.base import Part
from alignment.records import Demonstration, Feedback, PreferencePair, Prompt, Response

T = TypeVar("T")
Splittable = TypeVar("Splittable", Prompt, Demonstration, PreferencePair)
Identified = TypeVar("Identified", Prompt, Response)


def opening(item: Prompt | Demonstration | PreferencePair | Feedback) -> str:
    """The user's first message, without regard to case and spacing: what items are split by."""
    turns = item.prompt if isinstance(item, PreferencePair | Feedback) else item.messages
    first = next((message.content for message in turns if message.role == "user"), "")
    return " ".join(first.split()).casefold()


def is_held_out(key: str, held_out: float) -> bool:
    """Whether the content ``key`` falls in the held-out share, in (0, 1)."""
    return _place(key) < held_out * 2**64


def _place(key: str) -> int:
    """Where the content lies, uniform over 64 bits."""
    return int.from_bytes(hashlib.sha256(f"held-out\0{key}".encode()).digest()[:8], "big")


def split_by_digest(items: Iterable[T], held_out: float, *, key: Callable[[T], str]) -> tuple[list[T], list[T]]:
    """(train, held out), each in the order given. ``key`` says what must stay on one side: see :func:`opening`.

    The held-out share is ``held_out`` in expectation; a small file may leave a side empty.
    """
    train: list[T] = []
    kept: list[T] = []
    for item in items:
        (kept if is_held_out(key(item), held_out) else train).append(item)
    return train, kept


def split_both_sides(items: Iterable[T], held_out: float, *, key: Callable[[T], str]) -> tuple[list[T], list[T]]:
    """The same split, but a side that chance left empty is given what lies nearest to it.

    For what a run makes itself, such as a day's votes: of 20 pairs a fifth is none once in ninety times, and that is no
    reason to fail. Only items that are all alike leave a side empty.
    """
    everything = list(items)
    train, kept = split_by_digest(everything, held_out, key=key)
    places = {_place(key(item)) for item in everything}
    if (train and kept) or len(places) < 2:
        return train, kept
    nearest = max(places) if kept else min(places)
    moved = [item for item in everything if _place(key(item)) == nearest]
    rest = [item for item in everything if _place(key(item)) != nearest]
    return (moved, rest) if kept else (rest, moved)


def part_of(ids: Iterable[str], part: Part, limit: int | None = None) -> set[str]:
    """The held-out items that a stage asks: a half of them, and at most ``limit``, in the order of their ids.

    Ids are digests: no part of the file is preferred.
    """
    ordered = sorted(ids)
    middle = (len(ordered) + 1) // 2
    halves: dict[Part, list[str]] = {
        "all": ordered, "first half": ordered[:middle], "second half": ordered[middle:],
    }  # fmt: skip
    return set(halves[part][:limit])


def limited(items: Sequence[Identified], limit: int | None, turn: int = 1) -> list[Identified]:
    """At most ``limit`` items, in the order given; not its first ones, for files are often sorted by kind.

    Each ``turn``, from 1, takes those that follow the turn before's in the order of their ids, from the first again
    after the last.
    """
    if limit is None or limit >= len(items):
        return list(items)
    ordered = sorted(item.id for item in items)
    chosen = {ordered[place % len(ordered)] for place in range((turn - 1) * limit, turn * limit)}
    return [item for item in items if item.id in chosen]
