"""A PostgreSQL server for the tests that want one, where it is installed."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text


def _postgres_bin() -> Path | None:
    named = os.environ.get("RLHF_TEST_POSTGRES_BIN")
    homes = [Path(named)] if named else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((home for home in reversed(homes) if (home / "initdb").exists()), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of this test run, without a database's name."""
    binaries = _postgres_bin()
    if binaries is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: postgresql)")
    home = Path(tempfile.mkdtemp(prefix="rlhf-pg-"))
    as_user: dict[str, str] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(home, "postgres", "postgres")
        as_user = {"user": "postgres", "group": "postgres"}
    hasty = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off"  # what is in it is gone after the tests
    data, options = home / "data", f"-k {home} -c listen_addresses='' -c max_connections=120 {hasty}"
    quiet = {"stdout": subprocess.DEVNULL, "cwd": home}
    make = [binaries / "initdb", "-D", data, "-U", "rlhf", "--auth=trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(make, check=True, **quiet, **as_user)
    control = [binaries / "pg_ctl", "-D", data, "-w", "-l", home / "log"]
    subprocess.run([*control, "-o", options, "start"], check=True, **quiet, **as_user)
    try:
        yield f"postgresql+psycopg://rlhf@/{{name}}?host={home}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, **quiet, **as_user)
        shutil.rmtree(home, ignore_errors=True)


def empty_database(template: str) -> str:
    """The URL of a new database on the server whose URL :func:`postgres` gives."""
    name = f"t{uuid.uuid4().hex}"
    engine = create_engine(template.format(name="postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return template.format(name=name)
