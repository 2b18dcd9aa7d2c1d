"""A store's copy in another database, row by row and counted: PostgreSQL to a SQLite file and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Integer, Select, Table, delete, func, insert, select, text

from alignment.errors import Fault, InputError
from preference_ui.store.schema import DERIVED, comparisons, metadata
from preference_ui.store.store import Store, StoreError

ROWS = 500  # a batch
_TABLES = sorted(metadata.sorted_tables, key=lambda table: table in DERIVED)  # those that others refer to come first


def copy_store(source: Store, target: Store) -> dict[str, int]:
    """Copies every table of ``source``, as of one moment, into ``target``, whose tables have to be empty.

    Both have the newest schema. Returns the rows of each table. Raises InputError where the target has rows already,
    and StoreError where a count differs afterwards; then the target is as it was.
    """
    counts: dict[str, int] = {}
    with _snapshot(source) as reading, target.write() as writing:
        if filled := [table.name for table in metadata.sorted_tables if count(writing, table)]:
            problem = f"the store has rows already, in {', '.join(filled)}"
            raise InputError([Fault(problem, "name an empty database", field="store")])
        for table in _TABLES:
            if table in DERIVED:
                writing.execute(delete(table))  # what the triggers wrote about the copied rows
            uncounted = {"judged": 0} if table is comparisons else {}  # the copied votes are counted as they come
            for rows in reading.execute(_rows(table)).mappings().partitions(ROWS):
                values = [{str(name): value for name, value in row.items()} | uncounted for row in rows]
                writing.execute(insert(table), values)
            counts[table.name] = count(reading, table)
            if (there := count(writing, table)) != counts[table.name]:
                raise StoreError(f"{table.name} has {counts[table.name]} rows, and its copy {there}")
            _go_on_counting(writing, table)
    return counts


def row_counts(store: Store) -> dict[str, int]:
    """How many rows each table has."""
    with store.read() as connection:
        return {table.name: count(connection, table) for table in _TABLES}


def count(connection: Connection, table: Table) -> int:
    """How many rows a table has, in this transaction."""
    return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


@contextmanager
def _snapshot(store: Store) -> Iterator[Connection]:
    """A transaction that sees the store as it was at its beginning, whatever is written meanwhile."""
    options: dict[str, Any] = {"takes_write_lock": False}
    if not store.is_sqlite:  # in SQLite's WAL a reader always has a snapshot
        options["isolation_level"] = "REPEATABLE READ"
    with store.engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


def _rows(table: Table) -> Select[Any]:
    """A table's rows; those that refer to others of the same table come after them."""
    within = any(key.column.table is table for key in table.foreign_keys)
    return select(table).order_by(*((table.c.created,) if within else ()), *table.primary_key.columns)


def _go_on_counting(connection: Connection, table: Table) -> None:
    """Has PostgreSQL number the next row after the copied ones; SQLite does so by itself."""
    if connection.dialect.name != "postgresql":
        return
    for column in table.primary_key.columns:
        if isinstance(column.type, Integer) and column.autoincrement is True:
            newest = connection.execute(select(func.max(column))).scalar()
            if newest is not None:
                sequence = text("SELECT setval(pg_get_serial_sequence(:t, :c), :n)")
                connection.execute(sequence, {"t": table.name, "c": column.name, "n": newest})
