"""MLflow's tables, made by processes that are killed at it and by several at once: a real MLflow, on SQLite."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignment.errors import InputError
from alignment.registry.database import prepare
from alignment.registry.store import connect

pytestmark = pytest.mark.timeout(900)
PREPARE = "import sys; from alignment.registry.database import prepare; prepare(sys.argv[1])"
IN_PLACE = "import sys; from mlflow import MlflowClient; MlflowClient(sys.argv[1]).search_registered_models()"


def start(code: str, uri: str) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    return subprocess.Popen([sys.executable, "-c", code, uri], env=environment, stderr=subprocess.PIPE)


def killed(code: str, path: Path, tables: int) -> None:
    """Runs ``code`` on the store ``path`` until a file beside it has so many tables, and kills it there."""
    process = start(code, f"sqlite:///{path}")
    deadline = time.monotonic() + 300  # a busy machine takes its time to import MLflow
    while max((_tables(one) for one in path.parent.glob("*mlflow.db*") if _is_database(one)), default=0) < tables:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def _is_database(path: Path) -> bool:
    return path.name.endswith((".db", ".tmp"))


def _tables(path: Path) -> int:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return int(database.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0])
    except sqlite3.OperationalError:  # being written, or renamed
        return 0


def works(path: Path) -> bool:
    """Whether MLflow itself opens the store, and keeps a model in it."""
    connect.cache_clear()
    client = connect(f"sqlite:///{path}")
    client.create_registered_model("policy")
    return [model.name for model in client.search_registered_models()] == ["policy"]


def test_a_process_killed_while_it_makes_the_tables_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    killed(PREPARE, path, tables=4)
    assert not path.exists()
    assert works(path)
    assert {one.name for one in tmp_path.iterdir()} == {"mlflow.db", "mlflow.db.lock"}


@pytest.mark.slow
@pytest.mark.parametrize("tables", [2, 9, 14, 30])
def test_a_file_that_mlflow_itself_left_half_made_is_made_anew(tmp_path: Path, tables: int) -> None:
    """As every file was made before, and as `mlflow server` makes one: on this, every later start failed for good."""
    path = tmp_path / "mlflow.db"
    killed(IN_PLACE, path, tables)
    assert works(path)
    [aside] = tmp_path.glob("mlflow.db.half-made-*[0-9]")
    assert _tables(aside) >= tables


def test_a_half_made_file_that_holds_a_version_is_never_touched(tmp_path: Path, empty_store: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(empty_store.read_bytes())
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO registered_models (name) VALUES ('policy')")
        database.execute("UPDATE alembic_version SET version_num = '0a8213491aaa'")
        database.commit()
    before = path.read_bytes()
    with pytest.raises(
        InputError, match=r"mlflow\.db: it holds 1 registered models in the schema 0a8213491aaa.*upgrade"
    ):
        prepare(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database" * 100)
    with pytest.raises(InputError, match=r"mlflow\.db: MLflow's database cannot be read"):
        prepare(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.slow
def test_several_at_once_make_one_store(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    processes = [start(PREPARE, f"sqlite:///{path}") for _ in range(3)]
    errors = [process.communicate(timeout=300)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert works(path)
