"""What a constitution's revisions and a synthesis of responses came to, as it is shown in a run's report."""

from alignment.records import Record


class PrincipleFigures(Record):
    """How often a principle was drawn, and what came of it: usable revisions, and the others by reason."""

    name: str
    drawn: int
    revised: int
    left_out: dict[str, int]


class ConstitutionFigures(Record):
    """``constitution.json``: what the stage did. Words are means over the responses that were revised."""

    writer: str
    rounds: int
    responses: int
    revised: int
    left_out: dict[str, int]  # steps without a usable revision, by reason
    principles: tuple[PrincipleFigures, ...]
    words_before: float
    words_after: float
    tally: dict[str, float]


class Check(Record):
    """One search for repeats: of how many texts, how many were left out, and a few of them with what they repeat."""

    what: str
    checked: int
    left_out: int
    examples: tuple[tuple[str, str], ...] = ()


class SynthesisFigures(Record):
    """``synthesis.json``: the checks, how many responses each model and principle gave, and what was not answered."""

    checks: tuple[Check, ...]
    models: dict[str, int]
    principles: dict[str, int]
    empty: int
    failed: int
    tally: dict[str, float]
