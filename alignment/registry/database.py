"""MLflow's database before it is used: its tables made whole or not at all, by one process at a time.

MLflow makes and migrates its tables in place, step by step, and on SQLite no step can be taken back: a process that is
killed at it leaves a file on which every later start fails. So a SQLite file is migrated under another name and renamed
once it is whole. In PostgreSQL a migration is one transaction, and it takes a lock to keep two processes apart.
"""

import contextlib
import logging
import sqlite3
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from alignment.durable_files import rename_synced, temporary_beside
from alignment.errors import Fault, InputError

_log = logging.getLogger(__name__)
SQLITE = "sqlite:///"
BESIDE = ("", "-journal", "-wal", "-shm")  # a SQLite database is these files
CONTENT = ("registered_models", "model_versions", "runs")  # tables whose rows are what somebody would miss


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0]) if uri.startswith(SQLITE) else None


def prepare(uri: str) -> None:
    """Makes MLflow's tables where there are none; a process that dies at it, or does it at the same time, does no harm.

    A SQLite file that a killed migration left half made, and that holds no run and no version, is put aside and made
    anew, with a warning. Raises InputError for one that holds some and has another schema than this MLflow's.
    """
    path = sqlite_file(uri)
    if path is not None:
        _prepare_sqlite(path)
    elif uri.startswith("postgresql"):
        _prepare_postgresql(uri)


def _prepare_sqlite(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        for rest in path.parent.glob(f".{path.name}.*"):  # of processes that died while they held the lock
            rest.unlink(missing_ok=True)
        if path.exists():
            head = _head()
            revision = _revision(path)
            if revision == head:
                return
            _put_aside(path, revision, head)
        temporary = temporary_beside(path)
        _make_tables(f"{SQLITE}{temporary}")
        rename_synced(temporary, path)


def _make_tables(uri: str) -> None:
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables  # what `mlflow server` calls: MLflow has no public name for it

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    engine = sqlalchemy.create_engine(uri)
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()


def _head() -> str:
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def _revision(path: Path) -> str | None:
    """The schema's revision; None where there is none. Raises InputError for a file that is no SQLite database."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=30)) as database:
            if not _has(database, "alembic_version"):
                return None
            row = database.execute("SELECT version_num FROM alembic_version").fetchone()
            return None if row is None else str(row[0])
    except sqlite3.DatabaseError as error:
        problem = f"MLflow's database cannot be read: {error}"
        raise InputError([Fault(problem, "restore it from a backup, or move it away", file=str(path))]) from error


def _put_aside(path: Path, revision: str | None, head: str) -> None:
    """Renames a database that holds nothing. Raises InputError for one that holds runs or versions."""
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as database:
        held = {table: _rows(database, table) for table in CONTENT}
    if any(held.values()):
        counted = ", ".join(f"{count} {table.replace('_', ' ')}" for table, count in held.items() if count)
        problem = f"it holds {counted} in the schema {revision}, and this MLflow's is {head}"
        remedy = f"copy the file, then run `mlflow db upgrade {SQLITE}{path}`; where that fails, restore a backup"
        raise InputError([Fault(problem, remedy, file=str(path))])
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    for suffix in BESIDE:
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(path.with_name(f"{path.name}.half-made-{stamp}{suffix}"))
    _log.warning("%s was left half made (schema %s) and held nothing; it is made anew", path, revision)


def _rows(database: sqlite3.Connection, table: str) -> int:
    if not _has(database, table):
        return 0
    return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def _has(database: sqlite3.Connection, table: str) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return database.execute(query, (table,)).fetchone() is not None


def _prepare_postgresql(uri: str) -> None:
    import sqlalchemy
    from mlflow import MlflowClient

    engine = sqlalchemy.create_engine(uri)
    try:
        with _advisory_lock(engine, uri):
            MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)
    finally:
        engine.dispose()


@contextlib.contextmanager
def _advisory_lock(engine: Any, uri: str) -> Iterator[None]:
    """One process of all machines at a time; PostgreSQL gives the lock back when its holder's connection ends."""
    from sqlalchemy import text

    number = zlib.crc32(b"rlhf-flows:" + str(engine.url.database).encode())
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:number)"), {"number": number})
        yield
