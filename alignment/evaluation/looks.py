"""How often a set of held-out prompts has been looked at, and the level that is left for the next look.

One test at 2.5 % is wrong once in forty. A run each night is 365 tests a year: nine wrong promotions. So levels are
spent: the t-th look at a set is held to ``level / t``. Then, however the looks depend on each other, the expected
number of wrong promotions is at most the sum of the levels: 0.025 (1 + 1/2 + … + 1/T), which is 0.09 in twenty looks,
0.16 in a year of nights and 0.25 in ten thousand of them.

This is LOND (Javanmard and Montanari 2018, "Online rules for control of false discovery rate and false discovery
exceedance", Annals of Statistics 46, 526-554) with a harmonic sequence and without its reward, more level after each
discovery. Rules with a reward (LOND; LORD; SAFFRON of Ramdas et al. 2018) need independent or at least benign p-values
to bound the *number* of errors. Looks at one set of prompts are neither: a recipe that is trained again is lucky on the
same prompts again, and the first wrong promotion would pay for the next.
"""

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime

from alignment.digests import digest_of
from alignment.records import Record

LEVEL = 0.025  # of a first look, one-sided: the whole 95 % interval lies on one side
OVERLAP = 0.1  # share of the smaller of two sets from which on a look at one is a look at the other
SKETCHED = 512  # prompts that are told apart one by one; of larger sets, those with the smallest digests
DIGITS = 8  # hex, of a prompt's digest


class HeldOutSet(Record):
    """A set of prompts by its digest. ``sketch``: the smallest digests of its ``size`` prompts, up to 512 of them."""

    digest: str
    size: int
    sketch: str

    @property
    def prompts(self) -> frozenset[str]:
        """The digests in the sketch."""
        return frozenset(self.sketch[at : at + DIGITS] for at in range(0, len(self.sketch), DIGITS))

    @property
    def whole(self) -> bool:
        """Whether the sketch holds every prompt."""
        return len(self.sketch) == DIGITS * self.size


class Look(Record):
    """One evaluation that a gate decided on: the ``number``-th look at its held-out set, by which run of which recipe.

    ``identity`` is the evaluation's digest: the same evaluation read again is the same look.
    """

    identity: str
    held_out: HeldOutSet
    number: int
    at: datetime
    run: str
    recipe: str
    model: str


def held_out_set(openings: Iterable[str]) -> HeldOutSet:
    """The set of prompts with these openings (:func:`alignment.data.split.opening`), in any order.

    A prompt is its opening, as it is when prompts are held out: other spacing or a further turn makes no new prompt.
    """
    distinct = sorted({hashlib.sha256(one.encode()).hexdigest() for one in openings})
    sketch = "".join(sorted({one[:DIGITS] for one in distinct})[:SKETCHED])
    return HeldOutSet(digest=digest_of(distinct), size=len(distinct), sketch=sketch)


def overlap(one: HeldOutSet, other: HeldOutSet) -> float:
    """The share of the smaller set's prompts that are in the other: exact up to 512 prompts, estimated above.

    Prompts beyond the end of a sketch are left out on both sides; what is left is a random part of each set, for
    digests are uniform. Where nothing is left of one, nothing is known, and the sets count as the same.
    """
    mine, theirs = one.prompts, other.prompts
    known = min((max(each.prompts) for each in (one, other) if not each.whole), default="g")  # above every digest
    mine, theirs = (frozenset(prompt for prompt in side if prompt <= known) for side in (mine, theirs))
    smaller = min(len(mine), len(theirs))
    return len(mine & theirs) / smaller if smaller else 1.0


def earlier(looks: Sequence[Look], held_out: HeldOutSet) -> list[Look]:
    """The looks that count for a set: those at sets which share a tenth of the prompts or more.

    So a prompt added, removed or rewritten gives no new budget; prompts that nobody has looked at do.
    """
    return [look for look in looks if overlap(look.held_out, held_out) >= OVERLAP]


def level_of(number: int, first: float = LEVEL) -> float:
    """The level of the ``number``-th look, counted from 1. Raises ValueError below."""
    if number < 1:
        raise ValueError(f"looks are counted from 1, not {number}")
    return first / number
