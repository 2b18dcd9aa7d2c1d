"""Servers that somebody else runs and the user names, asked before anything is done with them, all at once.

A variable or a field of the recipe gives an address; whether a server is there is known in seconds, and told in a line
with the address and who named it. One that takes connections and never answers is as little there as one that refuses.
"""

import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment.errors import Fault, InputError
from flows.services.http_client import UnreachableError, ask, without_password

NAMED_SECONDS = 8.0  # for a server that runs already, or is not there
ATTEMPT_SECONDS = 3.0  # for one answer
LATEST_SECONDS = 13.0  # when a question ends whatever it waits for: a name server that does not answer, for one
PAUSE_SECONDS = 0.5
GATEWAY = (502, 503, 504)  # what stands before a server that is not there
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # with empty SETTINGS
HTTP2_SETTINGS = 4  # the kind of the first frame of whoever speaks HTTP/2


class NotThereError(Exception):
    """No server answers at an address, or another one; it may yet come up."""


class RefusalError(Exception):
    """An answer that no wait mends: what is wrong, and what to do."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem, self.remedy = problem, remedy


@dataclass(frozen=True, slots=True)
class NamedServer:
    """A server by who named it: ``field`` is a variable, an option or a recipe's field.

    ``probe`` asks it once. It returns where the server is there, and raises NotThereError or RefusalError.
    """

    what: str
    address: str
    field: str
    remedy: str
    probe: Callable[[], None]

    def fault(self, seconds: float | None = None) -> Fault | None:
        """What is wrong with it, after ``seconds`` in which it did not come up; None where it is there."""
        deadline = time.monotonic() + (NAMED_SECONDS if seconds is None else seconds)
        while True:
            try:
                self.probe()
                return None
            except RefusalError as error:
                return Fault(error.problem, error.remedy, field=self.field)
            except NotThereError as error:
                if time.monotonic() > deadline:
                    return self.not_there(str(error))
            time.sleep(PAUSE_SECONDS)

    def not_there(self, why: str) -> Fault:
        """The fault of a server that is not there."""
        return Fault(f"{self.what} at {self.address}: {why}", self.remedy, field=self.field)


def faults_of(named: Sequence[NamedServer]) -> list[Fault | None]:
    """What is wrong with each server, in their order (None: it is there); all are asked at the same time."""
    found: dict[int, Fault | None] = {}

    def look(place: int) -> None:
        found[place] = named[place].fault()

    threads = [threading.Thread(target=look, args=(place,), daemon=True) for place in range(len(named))]
    for thread in threads:
        thread.start()
    latest = time.monotonic() + LATEST_SECONDS
    for thread in threads:
        thread.join(max(0.0, latest - time.monotonic()))
    silent = [server.not_there(f"no answer in {LATEST_SECONDS:g} s") for server in named]
    return [found.get(place, silent[place]) for place in range(len(named))]


def require(named: Sequence[NamedServer]) -> None:
    """Raises InputError with the fault of each that is not there."""
    if faults := [fault for fault in faults_of(named) if fault is not None]:
        raise InputError(faults)


def http_server(
    what: str,
    url: str,
    field: str,
    remedy: str,
    *,
    headers: Mapping[str, str] | None = None,
    strict: bool = True,
    refused: str = "see who may use it",
) -> NamedServer:
    """A server that answers a GET of ``url``: with success, or where it is not ``strict`` with whatever is its own."""
    shown = without_password(url)

    def probe() -> None:
        try:
            reply = ask(url, headers=headers, timeout=ATTEMPT_SECONDS)
        except UnreachableError as error:
            raise NotThereError(f"does not answer: {error}") from None
        if strict and reply.status in (401, 403):
            raise RefusalError(f"{what} answers {reply.status} at {shown}", refused)
        if reply.status in GATEWAY or (strict and not reply.ok):
            raise NotThereError(f"answers {reply.status}")

    return NamedServer(what, shown, field, remedy, probe)


def database_server(what: str, url: str, field: str, remedy: str) -> NamedServer:
    """A database by its SQLAlchemy URL. PostgreSQL is logged in to; another server's port has to take connections.

    Raises InputError where the URL cannot be read.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except ArgumentError:
        problem = f"{what}'s address cannot be read"
        raise InputError([Fault(problem, "write postgresql://USER@HOST/DATABASE", field=field)]) from None
    shown = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() == "postgresql":
        if "asyncpg" in parsed.drivername:  # a driver of Prefect's server; this process has none that waits for it
            parsed = parsed.set(drivername="postgresql+psycopg")
        return NamedServer(what, shown, field, remedy, lambda: _log_in(parsed, what))
    host, port = parsed.host, parsed.port
    return NamedServer(what, shown, field, remedy, lambda: _connect(host, port) if host and port else None)


def ray_cluster(address: str, field: str) -> NamedServer:
    """A Ray cluster's head by ``host:port``, as whom its gRPC server answers."""
    remedy = "start the cluster (`ray start --head`), or name another"
    return NamedServer("the Ray cluster", address, field, remedy, lambda: _speaks_http2(address))


def file_problem(path: Path) -> str | None:
    """Why a file cannot be a SQLite database that is read and written; None where it is one or can become one."""
    import sqlite3
    from contextlib import closing

    if not path.exists():
        return None if path.parent.is_dir() else f"there is no folder {path.parent}"
    try:
        with path.open("r+b"), closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=5)) as database:
            database.execute("PRAGMA schema_version").fetchone()
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except sqlite3.DatabaseError as error:
        return None if "locked" in str(error) else str(error)
    return None


def _log_in(url: object, what: str) -> None:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError
    from sqlalchemy.pool import NullPool

    try:
        engine = create_engine(
            url,  # type: ignore[call-overload]
            connect_args={"connect_timeout": max(2, round(ATTEMPT_SECONDS))},
            poolclass=NullPool,
        )
        engine.connect().close()
    except (ImportError, NoSuchModuleError) as error:
        problem = f"{what} needs a driver that is not installed: {error}"
        raise RefusalError(problem, "pip install 'rlhf-flows[postgres]', and write postgresql+psycopg://") from None
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or error).strip()
        raise NotThereError(f"does not answer: {cause.splitlines()[0] if cause else type(error).__name__}") from None


def _connect(host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=ATTEMPT_SECONDS).close()
    except OSError as error:
        raise NotThereError(f"does not answer: {(error.strerror or str(error)).lower()}") from None


def _speaks_http2(address: str) -> None:
    """Whether an HTTP/2 server, such as gRPC's, answers to its greeting (RFC 9113, section 3.4)."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise RefusalError(f"{address!r} is no address of a Ray cluster", "write auto or HOST:PORT")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ATTEMPT_SECONDS) as connection:
            connection.sendall(HTTP2_PREFACE)
            reply = connection.recv(9)
    except TimeoutError:
        raise NotThereError(f"no answer in {ATTEMPT_SECONDS:g} s") from None
    except OSError as error:
        raise NotThereError(f"does not answer: {(error.strerror or str(error)).lower()}") from None
    if len(reply) < 4 or reply[3] != HTTP2_SETTINGS:
        raise NotThereError("what answers is no Ray")
