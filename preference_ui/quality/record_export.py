"""Records whole into a folder: one file for programs, two tables for people, and what they were made of."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import select

from alignment.errors import Fault, InputError
from alignment.records import Record
from preference_ui.import_export import ALL, Filter
from preference_ui.labelling.ruling import LETTERS
from preference_ui.quality.records import marked_words, said
from preference_ui.quality.spreadsheet import CsvTable
from preference_ui.quality.whole_records import GivenVote, WholeRecord, all_records
from preference_ui.store.schema import collections
from preference_ui.store.store import Store

RECORDS, TABLE, VOTES, MANIFEST = "records.jsonl", "records.csv", "votes.csv", "manifest.json"
_TABLE = ("record", "queue", "created", "question", "answers", "models", "votes_wanted", "votes", "flags", "comments",
          "corrections", "rulings", "held", "withdrawn")  # fmt: skip
_VOTES = ("vote", "record", "queue", "rater", "purpose", "said", "strength", "reason", "comment", "corrects",
          "correction", "marks", "scores", "seconds", "created", "counts")  # fmt: skip


class RecordExport(Record):
    """What was written. ``digest`` is of ``records.jsonl``, and the same for the same records and votes."""

    path: str
    rows: int
    votes: int
    raters: int
    digest: str


def export_records(store: Store, folder: Path, chosen: Filter = ALL) -> RecordExport:
    """Writes the records of the filter's queue and votes to a new folder: ``records.jsonl`` (:class:`WholeRecord`),
    ``records.csv`` and ``votes.csv``, and ``manifest.json`` with the files' SHA-256 and the queues' snapshots, by
    whose digests a run's lineage names them.

    Raises InputError where the folder is there already, cannot be made, or no record is left; then nothing is written.
    """
    if chosen.min_agreement or chosen.min_votes > 1:
        problem, remedy = "records are exported whole, whatever the votes say", "leave --min-agreement out"
        raise InputError([Fault(problem, remedy, field="min_agreement")])
    _require_place(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            counts = _write(store, beside, chosen)
            beside.chmod(0o755)
            beside.rename(folder)  # whole, or not at all
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        problem = f"the folder cannot be written: {(error.strerror or str(error)).lower()}"
        raise InputError([Fault(problem, "name another one", file=str(folder))]) from None
    return RecordExport(path=str(folder), **counts)


def _require_place(folder: Path) -> None:
    if folder.suffix in (".jsonl", ".json", ".csv", ".parquet"):
        raise InputError([Fault("records go into a folder", "name one, without an ending", file=str(folder))])
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError([Fault("there is something already", "name a new folder", file=str(folder))])


def _write(store: Store, folder: Path, chosen: Filter) -> dict[str, Any]:
    rows = votes = 0
    raters: set[str] = set()
    queues: set[str] = set()
    with (
        (folder / RECORDS).open("w", encoding="utf-8") as whole,
        CsvTable(folder / TABLE, _TABLE) as table,
        CsvTable(folder / VOTES, _VOTES) as given,
    ):
        for record in all_records(store, chosen):
            whole.write(record.model_dump_json() + "\n")
            table.write(_row(record))
            letters = {answer["id"]: LETTERS[at] for at, answer in enumerate(record.responses)}
            texts = {answer["id"]: answer["text"] for answer in record.responses}
            for vote in record.votes:
                given.write(_vote_row(record, vote, letters, texts))
            rows, votes = rows + 1, votes + len(record.votes)
            raters |= {vote.rater for vote in record.votes if vote.purpose != "ruling"}
            queues.add(record.queue)
    if not rows:
        raise InputError([Fault("no record is left to write", "loosen the filter", file=str(folder.name.lstrip(".")))])
    files = {name: _sha256(folder / name) for name in (RECORDS, TABLE, VOTES)}
    manifest = {"records": rows, "votes": votes, "raters": len(raters), "filter": chosen.model_dump(mode="json"),
                "files": files, "snapshots": _snapshots(store, queues)}  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    return {"rows": rows, "votes": votes, "raters": len(raters), "digest": files[RECORDS]}


def _row(record: WholeRecord) -> dict[str, Any]:
    counted = [vote for vote in record.votes if not vote.superseded and not vote.left_out]
    work = [vote for vote in counted if vote.purpose == "work"]
    turns = record.prompt["messages"]
    return {
        "record": record.id, "queue": record.queue, "created": record.created.isoformat(),
        "question": turns[-1]["content"] if turns else "", "answers": len(record.responses),
        "models": ", ".join(str(answer.get("model", "")) for answer in record.responses),
        "votes_wanted": record.votes_wanted, "votes": sum(vote.outcome != "skipped" for vote in work),
        "flags": sum(vote.outcome == "flagged" for vote in work), "comments": sum(bool(vote.comment) for vote in work),
        "corrections": sum(vote.correction is not None for vote in work),
        "rulings": sum(vote.purpose == "ruling" for vote in counted),
        "held": "yes" if record.held else "no", "withdrawn": "yes" if record.withdrawn else "no",
    }  # fmt: skip


def _vote_row(
    record: WholeRecord, vote: GivenVote, letters: Mapping[str, str], texts: Mapping[str, str]
) -> dict[str, Any]:
    correction = vote.correction or {}
    scores = [f"{name.partition(':')[0]} {letters.get(name.partition(':')[2], '?')}: {score}"
              for name, score in sorted(vote.criteria.items())]  # fmt: skip
    return {
        "vote": vote.id, "record": record.id, "queue": record.queue, "rater": vote.rater, "purpose": vote.purpose,
        "said": said(vote.outcome, vote.ranking, vote.strength, letters), "strength": vote.strength,
        "reason": vote.reason, "comment": vote.comment, "corrects": letters.get(correction.get("response", ""), ""),
        "correction": correction.get("text", ""), "marks": "\n".join(marked_words(vote.spans or (), texts)),
        "scores": ", ".join(scores), "seconds": vote.seconds,
        "created": vote.created.isoformat(), "counts": "no" if vote.superseded or vote.left_out else "yes",
    }  # fmt: skip


def _snapshots(store: Store, queues: set[str]) -> dict[str, Any]:
    """The snapshots that were taken of these queues, without the paths that they have on this machine."""
    columns = [collections.c[name] for name in ("queue", "ready", "snapshot")]
    with store.read() as connection:
        rows = connection.execute(select(*columns).where(collections.c.ready.is_not(None))).all()
    return {
        row.queue: {
            "ready": row.ready.isoformat(),
            **{name: row.snapshot[name] for name in ("digest", "rows", "votes")},
        }
        for row in sorted(rows, key=lambda row: str(row.queue))
        if row.queue in queues
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
