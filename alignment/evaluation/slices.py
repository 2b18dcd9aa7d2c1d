"""Slices: the same figures on parts of what was asked, told apart by kind, length and source.

Prompts of real use and synthetic ones stand side by side as two sources: give them a ``source`` in the prompts' file.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

from alignment.evaluation.bootstrap import Difference, Measure, Sums, estimate, lead
from alignment.evaluation.win_rate import Rate, win_rate
from alignment.records import PreferencePair, Prompt, Record

T = TypeVar("T")
By = Literal["kind", "length", "source", "longer answer"]
LENGTHS = ((16, "up to 16 words"), (64, "17 to 64 words"), (None, "more than 64 words"))  # of what the user said
UNNAMED = "no source given"
FEWEST = 2  # items that a slice is shown for


class Slice(Record):
    """A part of what was asked, ``n`` prompts or pairs whose ``by`` is ``value``."""

    by: By
    value: str
    n: int


class EvaluationSlice(Slice):
    """An evaluation on a slice of the prompts: as the whole, by opponent and judge, by model, by opponent.

    A metric that applies to none of the slice's prompts is left out.
    """

    win_rates: dict[str, dict[str, Rate]]
    metrics: dict[str, dict[str, Measure]]
    leads: dict[str, dict[str, Difference]]


class AccuracySlice(Slice):
    """A reward model's accuracy on a slice of the held-out pairs."""

    accuracy: Rate


def prompt_slices(prompts: Sequence[Prompt]) -> list[tuple[Slice, list[int]]]:
    """The slices of prompts, with the places of each one's; a property that all share makes none."""
    properties: dict[By, Callable[[Prompt], str]] = {
        "kind": lambda prompt: prompt.kind,
        "length": lambda prompt: _length(" ".join(m.content for m in prompt.messages if m.role == "user")),
        "source": lambda prompt: prompt.source or UNNAMED,
    }
    return _slices(prompts, properties)


def pair_slices(pairs: Sequence[PreferencePair]) -> list[tuple[Slice, list[int]]]:
    """The slices of preference pairs: also by who voted, and by whether the longer answer was the chosen one."""

    def longer(pair: PreferencePair) -> str:
        chosen, rejected = len(pair.chosen.split()), len(pair.rejected.split())
        return "chosen" if chosen > rejected else "rejected" if chosen < rejected else "neither"

    properties: dict[By, Callable[[PreferencePair], str]] = {
        "kind": lambda pair: pair.kind,
        "length": lambda pair: _length(" ".join(m.content for m in pair.prompt if m.role == "user")),
        "source": lambda pair: pair.rater_kind,
        "longer answer": longer,
    }
    return _slices(pairs, properties)


def evaluate_slices(
    prompts: Sequence[Prompt],
    outcomes: Mapping[str, Mapping[str, Sequence[float]]],
    sums: Mapping[str, Mapping[str, Sums]],
    candidate: str,
) -> tuple[EvaluationSlice, ...]:
    """Every figure on every slice: ``outcomes`` by opponent and judge, ``sums`` by model and metric."""
    found = []
    for part, places in prompt_slices(prompts):
        here = {
            model: {name: cut for name, one in of_model.items() if (cut := one.at(places)).applies.any()}
            for model, of_model in sums.items()
        }
        found.append(
            EvaluationSlice(
                **part.model_dump(),
                win_rates={
                    opponent: {judge: win_rate([values[i] for i in places]) for judge, values in judged.items()}
                    for opponent, judged in outcomes.items()
                },
                metrics={
                    model: {name: estimate(one) for name, one in of_model.items()} for model, of_model in here.items()
                },
                leads=leads_of(here, candidate),
            )
        )
    return tuple(found)


def leads_of(sums: Mapping[str, Mapping[str, Sums]], candidate: str) -> dict[str, dict[str, Difference]]:
    """The candidate's lead over each other model, by metric, of the metrics that both have."""
    mine = sums.get(candidate, {})
    return {
        model: {
            name: lead(mine[name], theirs)
            for name, theirs in of_model.items()
            if name in mine and mine[name].applies.any() and theirs.applies.any()
        }
        for model, of_model in sums.items()
        if model != candidate
    }


def accuracy_slices(pairs: Sequence[PreferencePair], margins: Sequence[float]) -> tuple[AccuracySlice, ...]:
    """A reward model's accuracy on every slice, from the margin (chosen less rejected) of each pair."""
    right = [1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins]
    return tuple(
        AccuracySlice(
            **part.model_dump(),
            accuracy=win_rate([right[i] for i in places], clusters=[pairs[i].prompt_id for i in places]),
        )
        for part, places in pair_slices(pairs)
    )


def _length(text: str) -> str:
    words = len(text.split())
    return next(name for most, name in LENGTHS if most is None or words <= most)


def _slices(items: Sequence[T], properties: Mapping[By, Callable[[T], str]]) -> list[tuple[Slice, list[int]]]:
    found = []
    for by, value_of in properties.items():
        places: dict[str, list[int]] = {}
        for place, item in enumerate(items):
            places.setdefault(value_of(item), []).append(place)
        if len(places) < 2:
            continue
        names = [name for _most, name in LENGTHS if name in places] if by == "length" else sorted(places)
        found += [
            (Slice(by=by, value=value, n=len(places[value])), places[value])
            for value in names
            if len(places[value]) >= FEWEST
        ]
    return found
