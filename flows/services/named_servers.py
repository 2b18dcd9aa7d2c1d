"""What the environment names: Prefect's and MLflow's servers or databases, and the raters' store."""

import os
from pathlib import Path

from alignment.registry.database import sqlite_file
from alignment.workspace import Workspace
from flows.services.http_client import prefect_headers
from flows.services.probes import (
    NamedServer,
    RefusalError,
    database_server,
    file_problem,
    http_server,
    require,
)

VARIABLES = {"prefect": "PREFECT_API_URL", "mlflow": "MLFLOW_TRACKING_URI", "votes": "RLHF_STORE"}
PREFECT_DATABASES = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")
HEALTH_PATH = "/health"  # below the address of an interface
UNSET = "start that server, or unset the variable"


def reach(name: str, health: str, variable: str = "") -> None:
    """Waits for a server that runs elsewhere. Raises InputError, with its address and the variable that names it."""
    require([_elsewhere(name, health, variable)])


def _elsewhere(name: str, health: str, variable: str = "") -> NamedServer:
    headers = prefect_headers() if name == "prefect" else {}
    refused = "set PREFECT_API_KEY or PREFECT_API_AUTH_STRING" if name == "prefect" else "see who may use it"
    return http_server(f"{name}'s server", health, variable or VARIABLES[name], UNSET, headers=headers, refused=refused)


def named_by_environment(workspace: Workspace, *names: str) -> list[NamedServer]:
    """The servers that variables name, of ``names``: prefect, mlflow, votes; without names, all.

    Raises InputError where a variable's value is no address.
    """
    wanted = names or tuple(VARIABLES)
    found: list[NamedServer] = []
    if "prefect" in wanted:
        found += _prefect_named()
    if "mlflow" in wanted:
        found += _mlflow_named(workspace)
    if "votes" in wanted and (url := os.environ.get(VARIABLES["votes"])):
        found.append(raters_store(url, VARIABLES["votes"]))
    return found


def require_named(workspace: Workspace, *names: str) -> None:
    """Asks the servers that variables name (:func:`named_by_environment`). Raises InputError where one is not there."""
    require(named_by_environment(workspace, *names))


def raters_store(url: str, field: str) -> NamedServer:
    """The raters' store by its URL or path, and who named it. Raises InputError where it cannot be read."""
    from preference_ui.store.store import parse_url  # SQLAlchemy takes its time

    parsed = parse_url(url, field)
    if parsed.get_backend_name() != "sqlite":
        return database_server("the raters' store", parsed.render_as_string(hide_password=False), field, UNSET)
    return _file("the raters' store", Path(parsed.database or ""), field)


def require_store(url: str | None) -> None:
    """Asks the raters' store that ``--store`` or ``RLHF_STORE`` names. Raises InputError where it is not there."""
    named = os.environ.get(VARIABLES["votes"])
    if url and url != named:  # the command line takes the variable for the option's value
        require([raters_store(url, "--store")])
    elif named:
        require([raters_store(named, VARIABLES["votes"])])


def require_registry(reference: str, workspace: Workspace) -> None:
    """Asks MLflow, unless ``reference`` is a model's folder. Raises InputError where it is named and not there."""
    if not Path(reference).is_dir():
        require_named(workspace, "mlflow")


def _prefect_named() -> list[NamedServer]:
    if url := os.environ.get("PREFECT_API_URL"):
        return [_elsewhere("prefect", url.rstrip("/") + HEALTH_PATH)]
    named = [(variable, os.environ.get(variable, "")) for variable in PREFECT_DATABASES]
    return [
        database_server("Prefect's database", url, variable, UNSET)
        for variable, url in named
        if url.startswith("postgresql")
    ]


def _mlflow_named(workspace: Workspace) -> list[NamedServer]:
    uri, variable = workspace.mlflow_uri, VARIABLES["mlflow"]
    if uri.startswith(("http://", "https://")):
        return [_elsewhere("mlflow", uri.rstrip("/") + HEALTH_PATH)]
    if not os.environ.get(variable) or "://" not in uri:
        return []
    if (path := sqlite_file(uri)) is not None:
        return [_file("MLflow's database", path, variable)]
    return [database_server("MLflow's database", uri, variable, UNSET)]


def _file(what: str, path: Path, field: str) -> NamedServer:
    def probe() -> None:
        if (problem := file_problem(path)) is not None:
            raise RefusalError(f"{what} {path} cannot be used: {problem}", "name another file, or unset the variable")

    return NamedServer(what, str(path), field, UNSET, probe)
