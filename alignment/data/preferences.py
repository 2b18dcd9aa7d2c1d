"""Preference files: read in the forms they come in, written in TRL's.

What a row's author can mend is a fault (a missing column, an answer of the wrong type; in TRL's form also an identical
pair). What the published corpora are known to hold and nobody will mend (HH-RLHF's diverging dialogues, unranked
replies in message trees) is left out and counted.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from alignment.data import hh_rlhf, oasst, trl
from alignment.data.columns import listed
from alignment.data.jsonl import Row, scan_parsed, scan_rows
from alignment.data.pairing import PreferenceFile, Skip
from alignment.data.split import opening, split_by_digest
from alignment.durable_files import sync, temporary_beside, write_text
from alignment.errors import Fault, InputError, raise_faults
from alignment.records import PreferencePair

Format = Literal["auto", "trl", "hh_rlhf", "oasst"]
Form = Literal["text", "messages"]
FINISHED = ("chosen_finished", "rejected_finished")

_PARSERS: dict[str, Callable[[Row], list[PreferencePair | Skip]]] = {
    "trl": trl.parse,
    "hh_rlhf": hh_rlhf.parse,
    "oasst": oasst.parse,
}


def read_preferences(path: Path, format: Format = "auto", limit: int | None = None) -> PreferenceFile:  # noqa: A002
    """The pairs of a file in its order, or the first ``limit`` in the order of their ids, which are digests.

    Raises:
        InputError: with every fault of the file, by row and field; also where no pair is left.
    """
    found = scan_preferences(path, format, limit)
    raise_faults(found.faults)
    return found


def scan_preferences(path: Path, format: Format = "auto", limit: int | None = None) -> PreferenceFile:  # noqa: A002
    """:func:`read_preferences` of the rows that are right; ``faults`` of the result are those of the others."""
    try:
        chosen = _detect(path) if format == "auto" else format
    except InputError as error:
        return PreferenceFile([], faults=list(error.faults))
    skipped: Counter[Skip] = Counter()
    pairs: dict[str, PreferencePair] = {}
    rows: dict[str, int] = {}
    parsed_rows, faults = scan_parsed(path, _PARSERS[chosen])
    for row, parsed in parsed_rows:
        for pair in parsed:
            if isinstance(pair, Skip):
                skipped[pair] += 1
            elif pair.id in pairs:
                skipped[Skip.DUPLICATE] += 1
            else:
                pairs[pair.id], rows[pair.id] = pair, row
    if not pairs and not faults:
        reasons = listed(f"{count} × {reason}" for reason, count in skipped.items())
        remedy = "give pairs of different answers to the same prompt"
        faults = [Fault(f"no usable pair ({reasons})", remedy, file=str(path))]
    kept = list(pairs.values()) if limit is None else sorted(pairs.values(), key=lambda pair: pair.id)[:limit]
    return PreferenceFile(kept, dict(skipped), {pair.id: rows[pair.id] for pair in kept}, faults)


def load_preferences(
    path: Path,
    held_out: float,
    format: Format = "auto",  # noqa: A002
    limit: int | None = None,
) -> tuple[list[PreferencePair], list[PreferencePair], dict[Skip, int]]:
    """(train, held out, skipped) of a file, split by :func:`alignment.data.split.opening`."""
    found = read_preferences(path, format, limit)
    train, kept = split_by_digest(found.pairs, held_out, key=opening)
    return train, kept, found.skipped


def write_preferences(
    path: Path, pairs: Sequence[PreferencePair], form: Form = "messages", *, details: bool = False
) -> None:
    """Writes TRL's columns as .jsonl or .parquet; ``margin`` where any pair has one, ``chosen_finished`` and
    ``rejected_finished`` where any answer was cut off. Same pairs, same bytes.

    ``details`` adds ``raters`` (how many judged the pair) and ``agreement``, which trainers do not read.

    Raises:
        InputError: ``form`` is "text" and a prompt is more than one message of the user; or another file name.
    """
    rows = preference_rows(pairs, form, details=details, path=path)
    if path.suffix == ".jsonl":
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        _write_parquet(path, rows, form)
    else:
        raise InputError([Fault("the format is not known by its name", "use .jsonl or .parquet", file=str(path))])


def preference_rows(
    pairs: Sequence[PreferencePair], form: Form = "messages", *, details: bool = False, path: Path | None = None
) -> list[dict[str, Any]]:
    """The rows that :func:`write_preferences` writes; ``path`` stands in the faults of those that it cannot."""
    rows = list(_rows(path, pairs, form))
    if details:
        known = zip(rows, pairs, strict=True)
        rows = [{**row, "raters": pair.raters, "agreement": pair.agreement} for row, pair in known]
    if not all(pair.chosen_finished and pair.rejected_finished for pair in pairs):
        ended = [{name: getattr(pair, name) for name in FINISHED} for pair in pairs]
        rows = [row | more for row, more in zip(rows, ended, strict=True)]
    if not any(pair.margin is not None for pair in pairs):
        rows = [{name: value for name, value in row.items() if name != "margin"} for row in rows]
    return rows


def _detect(path: Path) -> str:
    """The format of a file by the columns of the first row that can be read."""
    rows, faults = scan_rows(path)
    if not rows:
        raise InputError(faults)
    _number, row = rows[0]
    if isinstance(row.get("prompt"), dict):
        return "oasst"
    if "chosen" in row and "rejected" in row:
        both = hh_rlhf.is_dialogue(row["chosen"]) and hh_rlhf.is_dialogue(row["rejected"])
        return "hh_rlhf" if both and "prompt" not in row else "trl"
    problem = f"no preference format has the columns {listed(row)}"
    remedy = 'name them prompt, chosen and rejected; or give HH-RLHF dialogues, or Open-Assistant trees ("prompt")'
    raise InputError([Fault(problem, remedy, file=str(path), row=_number)])


def _rows(path: Path | None, pairs: Iterable[PreferencePair], form: Form) -> Iterable[dict[str, Any]]:
    faults: list[Fault] = []
    where = None if path is None else str(path)
    for number, pair in enumerate(pairs, start=1):
        if form == "messages":
            prompt: Any = [message.model_dump() for message in pair.prompt]
            answers: list[Any] = [[{"role": "assistant", "content": text}] for text in (pair.chosen, pair.rejected)]
        else:
            if len(pair.prompt) > 1 or pair.prompt[0].role != "user":
                problem = "the prompt is a conversation, which plain text cannot say"
                faults.append(Fault(problem, "write the file as messages", where, number, "prompt"))
            prompt, answers = pair.prompt[-1].content, [pair.chosen, pair.rejected]
        yield {"prompt": prompt, "chosen": answers[0], "rejected": answers[1], "margin": pair.margin}
    raise_faults(faults)


def _write_parquet(path: Path, rows: list[dict[str, Any]], form: Form) -> None:
    import pyarrow  # not needed where the data is JSON
    import pyarrow.parquet as pq

    said = pyarrow.string()
    if form == "messages":
        said = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))
    columns = [(name, said) for name in ("prompt", "chosen", "rejected")]
    if rows and "margin" in rows[0]:
        columns.append(("margin", pyarrow.float64()))
    if rows and "raters" in rows[0]:
        columns += [("raters", pyarrow.int64()), ("agreement", pyarrow.float64())]
    columns += [(name, pyarrow.bool_()) for name in FINISHED if rows and name in rows[0]]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    pq.write_table(pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(columns)), temporary)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)
