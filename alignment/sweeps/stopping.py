"""Which variants of a sweep are clear losers, told on prompts of the training split alone.

After each seed from the second on, every variant is held against every other on the same prompts, over prompts and
seeds (:mod:`alignment.sweeps.crossed`), and one that is worse than another is trained no further. A single seed stops
nothing: how much of a difference is that seed's luck cannot be told from it.

With k variants and L such looks each of the k (k - 1) L one-sided tests has the error 5 % / (k (k - 1) L). So by
Bonferroni's inequality, however the tests depend on each other, the chance that any variant is stopped that is as good
as every other is at most 5 %, over the whole sweep. A race that stops whoever is significantly behind is that of Maron
and Moore (1994, "Hoeffding races", NIPS 6); successive halving (Jamieson and Talwalkar 2016) saves more and keeps no
such promise: of equal variants it stops half in each round.
"""

from collections.abc import Mapping

from alignment.evaluation.bootstrap import Difference, Floats
from alignment.records import Record
from alignment.sweeps.crossed import crossed_lead

ERROR = 0.05  # the chance that a variant is stopped that is as good as every other
FIRST_LOOK = 2  # seeds that are needed before anything can be told


class Stop(Record):
    """A variant that was stopped after ``seeds`` seeds: ``ahead`` is the lead of variant ``by`` over it on ``n``
    training prompts, whose low end at the one-sided ``level`` is above 0."""

    variant: str
    by: str
    seeds: int
    level: float
    ahead: Difference


def looks_of(seeds: int) -> int:
    """How often variants are looked at in a sweep of so many seeds: after each but the first and the last, whose
    training is all that could be saved."""
    return max(0, seeds - FIRST_LOOK)


def level_of_a_test(variants: int, looks: int) -> float:
    """The one-sided level of each test in a sweep that begins with so many variants."""
    return ERROR / (variants * (variants - 1) * looks)


def clear_losers(values: Mapping[str, Floats], *, variants: int, looks: int) -> list[Stop]:
    """The variants to stop now. ``values`` are those of each that is still trained, (prompts, seeds) so far, higher
    being better; ``variants`` and ``looks`` are those of the whole sweep."""
    level = level_of_a_test(variants, looks)
    everyone = list(values.values())
    stops = []
    for name, own in values.items():
        leads = {
            other: crossed_lead(theirs, own, everyone, confidence=1 - 2 * level)
            for other, theirs in values.items()
            if other != name
        }
        ahead = {other: lead for other, lead in leads.items() if lead.low > 0}
        if ahead:
            by = max(ahead, key=lambda other: ahead[other].value)
            stops.append(Stop(variant=name, by=by, seeds=own.shape[1], level=level, ahead=ahead[by]))
    return stops
