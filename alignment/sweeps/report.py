"""What a sweep found: ``sweep.json`` is this model, and ``sweep.html`` is drawn from nothing else."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from alignment.evaluation.bootstrap import Difference, Measure
from alignment.records import Record
from alignment.sweeps.comparison import HeldOutComparison
from alignment.sweeps.stopping import ERROR, Stop

Outcome = Literal["best", "alike", "worse", "stopped", "failed", "waiting", "unfinished"]


class SeedRun(Record):
    """A variant with one seed: the mean of the figure on held-out prompts (None: it was not asked), and the run."""

    seed: int
    value: float | None
    run: str | None


class VariantReport(Record):
    """One variant. ``mean`` and ``behind`` (the lead of the best over it) are on held-out prompts; their intervals hold
    together. ``note`` says why it has none."""

    name: str
    settings: Mapping[str, Any]
    outcome: Outcome
    seeds: tuple[SeedRun, ...]
    mean: Measure | None = None
    behind: Difference | None = None
    note: str = ""


class StageCounts(Record):
    """The stages of all runs: those that all variants share, those that each makes for itself, and how many different
    ones there are of ``total``; ``cached`` of them were there before."""

    shared: tuple[str, ...]
    varied: tuple[str, ...]
    total: int
    distinct: int
    cached: int


class HeldOutLook(Record):
    """This sweep's ``looks`` at its held-out prompts; which one the next at them would be, and the level that it is
    held to where looks are counted."""

    looks: int
    next_number: int
    next_level: float


class NextStep(Record):
    """Something to do next, and the line that does it."""

    purpose: str
    line: str


class SweepReport(Record):
    """A sweep, whole. ``figure`` is what is compared, in words, and ``metric`` its name; higher is better.

    ``part`` of the held-out prompts was asked, ``prompts`` of them; ``screened`` says how many prompts of the training
    split were asked to stop losers early (0: none). ``problem`` says why nothing is compared.
    """

    sweep: str
    recipe_name: str
    description: str
    keys: tuple[str, ...]
    evaluation: str
    candidate: str
    metric: str
    figure: str
    share: bool
    part: str
    prompts: int
    seeds: tuple[int, ...]
    variants: tuple[VariantReport, ...]
    comparison: HeldOutComparison | None
    stops: tuple[Stop, ...]
    screened: int
    stages: StageCounts
    look: HeldOutLook | None
    commands: tuple[NextStep, ...]
    started: datetime
    finished: datetime
    problem: str = ""
    error: float = ERROR

    @property
    def failed(self) -> tuple[VariantReport, ...]:
        """The variants of which a run failed."""
        return tuple(one for one in self.variants if one.outcome == "failed")

    @property
    def verdict(self) -> str:
        """What was found, in a sentence or two."""
        if self.comparison is None:
            return self.problem
        found = self.comparison
        if found.alike:
            rest = f" It is better than {_listed(found.worse)}." if found.worse else ""
            told = "is not told apart from" if len(found.alike) == 1 else "are not told apart from"
            return f"{found.best} has the highest mean; {_listed(found.alike)} {told} it.{rest}"
        return f"{found.best} is better than {'the other' if len(found.worse) == 1 else 'every other'} variant."


def _listed(names: tuple[str, ...]) -> str:
    """Names as a sentence has them; names with commas of their own are parted by semicolons."""
    if len(names) < 2:
        return "".join(names)
    comma = "; " if any("," in name for name in names) else ", "
    return f"{comma.join(names[:-1])} and {names[-1]}"
