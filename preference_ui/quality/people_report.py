"""Reports about the raters as tables for a spreadsheet: their time and pay, and what they said before work.

A cell that a spreadsheet would take for a formula begins with an apostrophe: names and ids come from outside.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment.errors import Fault, InputError
from preference_ui.accounts.links import external_ids
from preference_ui.import_export import pseudonym
from preference_ui.labelling.consent import consent_rows
from preference_ui.quality.spreadsheet import safe_cell
from preference_ui.quality.work_time import work_times
from preference_ui.store.store import Store

TIMES = (
    "rater",
    "external_id",
    "queue",
    "votes",
    "active_hours",
    "idle_minutes",
    "hourly_rate",
    "pay",
    "first",
    "last",
)
CONSENTS = ("rater", "external_id", "pseudonym", "at", "version", "digest", "agreed")


def write_times(
    store: Store, path: Path, *, hourly_rate: float | None = None, idle_minutes: float | None = None
) -> int:
    """Writes every rater's votes, active hours and pay in every queue as .csv. Returns the rows.

    Rate and bound are those of the settings where they are not given. Raises InputError for another file name, or where
    nobody has voted.
    """
    settings = store.settings()[1]
    rate = settings.hourly_rate if hourly_rate is None else hourly_rate
    idle = settings.idle_minutes if idle_minutes is None else idle_minutes
    external = external_ids(store)
    rows = [
        (one.rater, external.get(one.rater, ""), one.queue, one.votes, f"{one.hours:.4f}", f"{idle:g}", f"{rate:g}",
         f"{one.hours * rate:.2f}", one.first.isoformat(timespec="seconds"), one.last.isoformat(timespec="seconds"))
        for one in work_times(store, idle_minutes=idle)
    ]  # fmt: skip
    if not rows:
        raise InputError([Fault("nobody has voted yet", "come back when somebody has", file=str(path))])
    _write(path, TIMES, rows)
    return len(rows)


def write_consents(store: Store, path: Path) -> int:
    """Writes what raters were asked before work and said, a column a question, as .csv. Returns the rows.

    Raises InputError for another file name, or where nobody was asked.
    """
    external = external_ids(store)
    said = consent_rows(store)
    questions = sorted({name for one in said for name in one.answers})
    rows = [
        (one.name, external.get(one.name, ""), pseudonym(one.account), one.at, one.version, one.digest,
         "yes" if one.agreed else "no", *(one.answers.get(name, "") for name in questions))
        for one in said
    ]  # fmt: skip
    _write(path, (*CONSENTS, *questions), rows)
    return len(rows)


def _write(path: Path, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    if path.suffix != ".csv":
        raise InputError([Fault("the format is not known by its name", "use .csv", file=str(path))])
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(map(safe_cell, names))
    writer.writerows([safe_cell(cell) for cell in row] for row in rows)
    try:
        path.write_text(table.getvalue(), "utf-8")
    except OSError as error:
        problem = f"cannot be written: {error.strerror}"
        raise InputError([Fault(problem, "name a file in a folder that is there", file=str(path))]) from None
