"""How many answers are right in each cell of a benchmark, and which forms and models differ.

A cell is a model, a task and a form. Differences are of the same questions, one by one; the intervals of a table hold
together (Bonferroni): with k forms, each of the k (k - 1) / 2 has the error 5 % over their number.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

from alignment.evaluation.bootstrap import Difference, Measure, Sums, averaged, estimate, lead
from alignment.records import Record

ERROR = 0.05


class Cell(Record):
    """One form of one task put to one model. ``unread`` is the share of questions of which no answer could be read;
    tokens are means over the questions, those of all votes together."""

    model: str
    task: str
    form: str
    right: Measure
    unread: float
    prompt_tokens: float
    answer_tokens: float


class CellDifference(Record):
    """The right answers of ``left`` less those of ``right`` (forms, or models) where all else is equal: task, and the
    model or form that ``where`` names.
    The interval holds for all comparisons of its table together."""

    task: str
    where: str
    left: str
    right: str
    difference: Difference


Verdicts = Mapping[tuple[str, str, str], Sequence[bool]]
"""(model, task, form) → whether each question was answered right, in the questions' order."""


def share(right: Sequence[bool]) -> Measure:
    """The share of right answers, with Wilson's interval."""
    return estimate(_sums(right))


def form_differences(verdicts: Verdicts) -> list[CellDifference]:
    """Every two forms, for each model and task."""
    tables: dict[tuple[str, str], dict[str, Sequence[bool]]] = {}
    for (model, task, form), right in verdicts.items():
        tables.setdefault((task, model), {})[form] = right
    return [one for (task, model), table in tables.items() for one in _differences(task, model, table)]


def model_differences(verdicts: Verdicts) -> list[CellDifference]:
    """Every two models, for each task and form."""
    tables: dict[tuple[str, str], dict[str, Sequence[bool]]] = {}
    for (model, task, form), right in verdicts.items():
        tables.setdefault((task, form), {})[model] = right
    return [one for (task, form), table in tables.items() for one in _differences(task, form, table)]


def _differences(task: str, where: str, table: Mapping[str, Sequence[bool]]) -> list[CellDifference]:
    pairs = list(combinations(table, 2))
    confidence = 1 - ERROR / max(1, len(pairs))
    return [
        CellDifference(task=task, where=where, left=left, right=right,
                       difference=lead(_sums(table[left]), _sums(table[right]), confidence=confidence))
        for left, right in pairs
    ]  # fmt: skip


def _sums(right: Sequence[bool]) -> Sums:
    return averaged([float(one) for one in right], binary=True)


def best_forms(cells: Sequence[Cell], differences: Sequence[CellDifference]) -> dict[tuple[str, str], tuple[str, ...]]:
    """For each (model, task) the form of most right answers (of equals the first), then those not told apart."""
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for model, task in dict.fromkeys((cell.model, cell.task) for cell in cells):
        own = [cell for cell in cells if (cell.model, cell.task) == (model, task)]
        best = max(own, key=lambda cell: cell.right.value).form
        alike = [
            one.right if one.left == best else one.left
            for one in differences
            if (one.task, one.where) == (task, model) and best in (one.left, one.right)
            and not one.difference.significant
        ]  # fmt: skip
        found[model, task] = (best, *alike)
    return found
