"""The store: comparisons, leases, votes, people, and who did what. SQLite (WAL) by default, PostgreSQL by URL.

Every change happens in one transaction of :meth:`Store.write` together with its line in the audit trail. A transaction
that returns is on the disk: SQLite runs with ``synchronous=FULL``, so an acknowledged vote survives a power cut too.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, func, insert, make_url, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from alignment.errors import Fault, InputError
from preference_ui.store import schema
from preference_ui.store.settings import DeskSettings

MIGRATIONS = "preference_ui:migrations"
LOCK_WAIT_SECONDS = 15  # how long a writer waits for another process before it says so
CONNECT_SECONDS = (
    10  # for a server of PostgreSQL's to take a connection: one that never answers is waited for no longer
)
_NEWEST_SETTINGS = select(schema.settings).order_by(schema.settings.c.version.desc()).limit(1)
_AUDIT = insert(schema.audit)
_PG_MIGRATION_LOCK = 0x726C6866  # any number that only this app takes


class StoreError(Exception):
    """The database cannot be reached, is locked, full or read-only. Nothing was changed."""


def now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)


class Store:
    """An open store. Safe to share between threads; every process opens its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.is_sqlite = engine.dialect.name == "sqlite"
        # SQLite lets one writer in at a time and its waiters poll, which starves some of them; a lock queues them here.
        self._writing = threading.Lock() if self.is_sqlite else None

    @classmethod
    def open(cls, url: str, *, migrate: bool = True) -> "Store":
        """Opens (and makes, where missing) the store at an SQLAlchemy URL or a path to a SQLite file.

        Raises InputError for a URL that cannot be understood, StoreError where the database is not reachable.
        """
        parsed = parse_url(url)
        if "://" not in url:
            _make_folder(Path(parsed.database or "").parent)
        store = cls(_engine(parsed))
        if migrate:
            store.migrate()
        return store

    def migrate(self, revision: str = "head") -> None:
        """Brings the tables to ``revision``. Two processes may do so at once: the second waits and finds it done.

        Tables that are there already are only read: who reads votes does not wait for who writes them.
        """
        from alembic import command
        from alembic.config import Config
        from alembic.runtime.migration import MigrationContext
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", MIGRATIONS)
        wanted = ScriptDirectory.from_config(config).as_revision_number(revision)
        with self.read() as connection:
            if MigrationContext.configure(connection).get_current_revision() == wanted:
                return
        with self._transaction(write=True) as connection:
            if not self.is_sqlite:
                connection.execute(select(func.pg_advisory_xact_lock(_PG_MIGRATION_LOCK)))
            config.attributes["connection"] = connection
            command.upgrade(config, revision)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only looks."""
        with self._transaction(write=False) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that commits when the block ends, and rolls back when it raises.

        Raises StoreError where the database fails; then nothing was changed.
        """
        with self._writing or nullcontext(), self._transaction(write=True) as connection:
            yield connection

    @contextmanager
    def _transaction(self, *, write: bool) -> Iterator[Connection]:
        try:
            with self.engine.connect().execution_options(takes_write_lock=write) as connection, connection.begin():
                yield connection
        except (OperationalError, PoolTimeout) as error:
            raise StoreError(str(error).splitlines()[0]) from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise StoreError(str(error).splitlines()[0]) from error
            raise

    def close(self) -> None:
        """Closes every connection."""
        self.engine.dispose()

    def settings(self) -> tuple[int, DeskSettings]:
        """The version and the body of the settings that hold now; version 0 are the defaults."""
        with self.read() as connection:
            return current_settings(connection)

    def change_settings(self, body: DeskSettings, *, author: str) -> int:
        """Stores new settings as the next version. Returns the version."""
        with self.write() as connection:
            version = current_settings(connection)[0] + 1
            values = {"version": version, "created": now(), "author": author, "body": body.model_dump(mode="json")}
            connection.execute(insert(schema.settings).values(values))
            record(connection, author, "settings.change", str(version), {})
            return version

    def audit_trail(self, *, limit: int = 1000, subject: str | None = None) -> Sequence[Mapping[str, Any]]:
        """Who changed what, newest first."""
        query = select(schema.audit).order_by(schema.audit.c.id.desc()).limit(limit)
        if subject is not None:
            query = query.where(schema.audit.c.subject == subject)
        with self.read() as connection:
            return [{str(name): value for name, value in row.items()} for row in connection.execute(query).mappings()]


def current_settings(connection: Connection) -> tuple[int, DeskSettings]:
    """The newest settings as this transaction sees them."""
    row = connection.execute(_NEWEST_SETTINGS).first()
    return (0, DeskSettings()) if row is None else (row.version, DeskSettings.model_validate(row.body))


def record(connection: Connection, actor: str, action: str, subject: str, detail: Mapping[str, Any]) -> None:
    """Writes a line of the audit trail, in the transaction of the change that it tells of."""
    values = {"at": now(), "actor": actor, "action": action, "subject": subject[:160], "detail": dict(detail)}
    connection.execute(_AUDIT, values)


def insert_if_absent(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Inserts a row unless one with the same key is there, also when two transactions do so at once."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values(values).on_conflict_do_nothing().returning(*table.primary_key.columns)
    return connection.execute(statement).first() is not None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"the store's folder cannot be made: {error.strerror}"
        raise InputError([Fault(problem, "name another file", file=str(folder), field="store")]) from None


def parse_url(url: str, field: str = "store") -> URL:
    """A store's URL or path as SQLAlchemy has it; ``field`` is who named it. Raises InputError where it is none."""
    if "://" not in url:
        return URL.create("sqlite", database=str(Path(url).expanduser().resolve()))
    remedy = "write sqlite:///FOLDER/votes.db or postgresql://USER@HOST/DATABASE"
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InputError([Fault("the store's URL cannot be read", remedy, field=field)]) from None
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise InputError([Fault(f"the store cannot be kept in {backend}", remedy, field=field)])
    if backend == "sqlite" and parsed.query:
        problem = "the address of an SQLite store goes on after a question mark, which would be left out"
        raise InputError([Fault(problem, "give the path of the file alone, without sqlite:///", field=field)])
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise InputError([Fault("a store in memory would lose every vote", remedy, field=field)])
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed


def _engine(url: URL) -> Engine:
    try:
        if url.get_backend_name() == "sqlite":
            arguments: dict[str, Any] = {"timeout": LOCK_WAIT_SECONDS, "check_same_thread": False}
            engine = create_engine(url, connect_args=arguments, pool_size=16, max_overflow=32)
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        else:
            arguments = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_SECONDS}
            engine = create_engine(
                url, connect_args=arguments, pool_size=16, max_overflow=32, pool_timeout=10, pool_pre_ping=True
            )
        return engine
    except (NoSuchModuleError, ImportError):
        fault = Fault("the PostgreSQL driver is not installed", "pip install 'rlhf-flows[postgres]'", field="store")
        raise InputError([fault]) from None


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver would begin on its own, and late: we say BEGIN ourselves
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that turns into a writer half-way fails at once when another wrote meanwhile: take the lock first.
    write = connection.get_execution_options().get("takes_write_lock", True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def ping(store: Store) -> bool:
    """Whether the database answers."""
    try:
        with store.read() as connection:
            connection.execute(text("SELECT 1"))
        return True
    except StoreError:
        return False
