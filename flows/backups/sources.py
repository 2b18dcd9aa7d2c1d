"""What of a workspace is not in its folder, for a backup: votes and databases on other servers.

A backup has all of it or is not made: the raters' votes are copied wherever they are; Prefect's and MLflow's databases
are in the folder, unless the environment names servers that keep them elsewhere. Whether a named server keeps its data
in this very folder, as in the containers of ``infra``, is asked: its newest entries have to stand in the file here.
"""

import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from sqlalchemy.engine import make_url

from alignment.errors import Fault, InputError
from alignment.workspace import Workspace
from flows.services.http_client import UnreachableError, ask, prefect_headers
from flows.services.named_servers import PREFECT_DATABASES, require_store
from flows.services.server_outbox import own_api

PARTS = ("votes", "prefect", "mlflow")
VOTES = "raters/votes.db"
PREFECT_FILE, MLFLOW_FILE = "prefect/prefect.db", "mlflow.db"


def check_parts(without: Iterable[str]) -> None:
    """Raises InputError for a part that there is not."""
    if wrong := [name for name in without if name not in PARTS]:
        raise InputError(
            [Fault(f"no part {name!r}", f"one of {', '.join(PARTS)}", field="--without") for name in wrong]
        )


def elsewhere(root: Path, without: Iterable[str]) -> list[Fault]:
    """The faults of a backup that would lack a database: where it is, and which command makes its copy."""
    faults = []
    if "prefect" not in without and (fault := _prefect(root)) is not None:
        faults.append(fault)
    if "mlflow" not in without and (fault := _mlflow(root)) is not None:
        faults.append(fault)
    return faults


def copied_votes(root: Path, store: str | None, scratch: Path) -> Path | None:
    """A SQLite copy of the raters' store in ``scratch``; None where the store is the file in the workspace.

    Raises InputError or StoreError where the store cannot be read.
    """
    url = store or os.environ.get("RLHF_STORE")
    if not url or _sqlite_file(url) == (root / VOTES).resolve():
        return None
    require_store(store)
    from preference_ui.store.copy_store import copy_store
    from preference_ui.store.store import Store

    path = scratch / "votes.db"
    source, target = Store.open(url), Store.open(f"sqlite:///{path}")
    try:
        copy_store(source, target)
    finally:
        source.close()
        target.close()  # the last connection takes the write-ahead log into the file
    return path


def restored_votes(file: Path, root: Path, store: str | None) -> dict[str, int] | None:
    """Copies a backup's votes into the store that the workspace ``root`` will use; None where that is the file itself.

    Raises InputError where that store has rows already.
    """
    url = store or os.environ.get("RLHF_STORE")
    if not url or _sqlite_file(url) == (root / VOTES).resolve() or not file.exists():
        return None
    require_store(store)
    from preference_ui.store.copy_store import copy_store
    from preference_ui.store.store import Store

    source, target = Store.open(f"sqlite:///{file}"), Store.open(url)
    try:
        return copy_store(source, target)
    finally:
        source.close()
        target.close()


def _sqlite_file(url: str) -> Path | None:
    """The file of a store in SQLite."""
    if "://" not in url:
        return Path(url).expanduser().resolve()
    parsed = make_url(url)
    return Path(parsed.database).resolve() if parsed.get_backend_name() == "sqlite" and parsed.database else None


def _prefect(root: Path) -> Fault | None:
    leave_out = "or leave it out: --without prefect, and deploy the recipes again (`rlhf deploy RECIPE`)"
    for variable in PREFECT_DATABASES:
        if os.environ.get(variable):
            problem = "Prefect's deployments and runs are in the database that it names"
            return Fault(problem, f"copy it with `pg_dump`, and {leave_out[3:]}", field=variable)
    url = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    if not url or url == own_api(root) or _is_in(url, root / PREFECT_FILE):
        return None
    problem = f"Prefect's deployments and runs are on the server at {url}, not in this workspace"
    remedy = f"copy that server's database (`pg_dump`, or its prefect.db), {leave_out}"
    return Fault(problem, remedy, field="PREFECT_API_URL")


def _is_in(url: str, file: Path) -> bool:
    """Whether a Prefect server keeps its data in a file here, which then has its newest runs and deployments."""
    tables = {"deployments": "deployment", "flow_runs": "flow_run"}
    try:
        for kind, table in tables.items():
            body = {"limit": 20, "sort": "CREATED_DESC" if kind == "deployments" else "ID_DESC"}
            rows = ask(f"{url}/{kind}/filter", method="POST", body=body, headers=prefect_headers(), timeout=10).json()
            if not {row["id"] for row in rows} <= _column(file, f"select id from {table}"):
                return False
    except (UnreachableError, ValueError, KeyError, TypeError):
        return False
    return True


def _mlflow(root: Path) -> Fault | None:
    uri = Workspace(root).mlflow_uri
    if uri.startswith("sqlite:///"):
        if Path(uri.removeprefix("sqlite:///")).resolve() == (root / MLFLOW_FILE).resolve():
            return None
        copy = f"copy {uri.removeprefix('sqlite:///')} with `sqlite3 FILE .backup`"
    elif uri.startswith(("http://", "https://")):
        if _has_experiments(uri.rstrip("/"), root / MLFLOW_FILE):
            return None
        copy = "copy that server's database and artifacts"
    else:
        copy = "copy that database with `pg_dump`"
    shown = make_url(uri).render_as_string(hide_password=True) if "://" in uri else uri
    problem = f"MLflow's registry is at {shown}, not in this workspace"
    return Fault(problem, f"{copy}, and leave it out: --without mlflow", field="MLFLOW_TRACKING_URI")


def _has_experiments(url: str, file: Path) -> bool:
    """Whether an MLflow server keeps its data in a file here: the file has the experiments that it lists."""
    try:
        place = f"{url}/api/2.0/mlflow/experiments/search"
        rows = ask(place, method="POST", body={"max_results": 1000}, timeout=10).json().get("experiments", [])
        listed = {f"{row['experiment_id']} {row['creation_time']}" for row in rows}
        return listed <= _column(file, "select experiment_id || ' ' || creation_time from experiments")
    except (UnreachableError, ValueError, KeyError, TypeError):
        return False


def _column(file: Path, query: str) -> set[str]:
    if not file.exists():
        return set()
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            return {str(row[0]) for row in database.execute(query)}
    except sqlite3.Error:
        return set()


def open_runs(file: Path) -> list[str]:
    """The flow runs that had not ended when a copy of Prefect's database was made."""
    return sorted(_column(file, "select id from flow_run where state_type in ('PENDING', 'RUNNING', 'CANCELLING')"))
