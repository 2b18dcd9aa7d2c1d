"""MLflow, as the registry uses it: one registered model's entries, aliases, history and runs."""

import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from alignment.recipe.recipe import Recipe
from alignment.records import Artifact
from alignment.registry.records import Change
from alignment.workspace import Workspace

CHAMPION = "champion"
CANDIDATE = "candidate"
HISTORY_TAG = "champion.history"
SETTLED_TAG = "settled"  # a version's alias was set: what is left to do after a crash between entry and alias
METRICS_PER_CALL, PARAMETERS_PER_CALL = 1000, 100  # MLflow's limits
PARAMETER_LENGTH = 6000


@lru_cache(maxsize=4)
def connect(uri: str) -> Any:
    """An MLflow client for a store, its tables made on the first call (about 2 s on SQLite), silent."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


class Store:
    """The entries of one registered model."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.workspace, self.name = workspace, name
        self.client = connect(workspace.mlflow_uri)

    @staticmethod
    def names(workspace: Workspace) -> list[str]:
        """The registered models. Makes no store where there is none yet."""
        uri = workspace.mlflow_uri
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
            return []
        return sorted(model.name for model in _pages(connect(uri).search_registered_models))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One process of this workspace at a time changes the model; the lock ends with its holder."""
        with (self.workspace.folder("registry", self.name) / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def folder(self, version: int) -> Path:
        """Where a version's files are."""
        return self.workspace.folder("registry", self.name) / f"v{version}"

    def all(self) -> list[Any]:
        """Every entry that :mod:`alignment.registry` made, oldest first."""
        rows = _pages(self.client.search_model_versions, filter_string=f"name='{self.name}'")
        return sorted((row for row in rows if "identity" in row.tags), key=lambda row: int(row.version))

    def find(self, identity: str) -> list[Any]:
        """The entries of one candidate under one verdict."""
        return [row for row in self.all() if row.tags["identity"] == identity]

    def get(self, version: int) -> Any:
        """One entry."""
        return self.client.get_model_version(self.name, str(version))

    def next_version(self) -> int:
        """The number that MLflow should give the next entry."""
        rows = _pages(self.client.search_model_versions, filter_string=f"name='{self.name}'")
        return 1 + max((int(row.version) for row in rows), default=0)

    def create_version(self, folder: Path, run_id: str, tags: Mapping[str, str]) -> Any:
        """Makes an entry for a folder that is complete."""
        self._ensure_model()
        verdict = {"waiting": "waits for a person's approval"}.get(tags["gate"], f"the gate {tags['gate']}")
        return self.client.create_model_version(
            self.name, source=self._source(folder, run_id), run_id=run_id, tags=dict(tags), description=verdict
        )

    def delete_version(self, version: int) -> None:
        """Removes an entry whose number is not the one its folder was written for."""
        self.client.delete_model_version(self.name, str(version))

    def settle(self, row: Any) -> None:
        """Sets the alias that an entry's verdict gives it, once: a later call changes nothing."""
        version = int(row.version)
        if SETTLED_TAG in row.tags:
            return
        if row.tags["gate"] != "passed":
            self.client.set_registered_model_alias(self.name, CANDIDATE, str(version))
        elif (history := self.history()) and history[-1].version == version:
            self.client.set_registered_model_alias(self.name, CHAMPION, str(version))
        elif all(change.version < version for change in history):  # else a newer one overtook it
            self.set_champion(version, "the gate passed")
        self.client.set_model_version_tag(self.name, str(version), SETTLED_TAG, "true")

    def aliases(self) -> dict[str, int]:
        """The versions by alias."""
        return {alias: int(v) for alias, v in self.client.get_registered_model(self.name).aliases.items()}

    def aliases_of(self, version: int) -> list[str]:
        """One version's aliases."""
        return sorted(alias for alias, holder in self.aliases().items() if holder == version)

    def history(self) -> list[Change]:
        """Every move of the alias, oldest first."""
        text = self.client.get_registered_model(self.name).tags.get(HISTORY_TAG, "[]")
        return [Change.model_validate(change) for change in json.loads(text)]

    def held(self) -> list[int]:
        """The champion, last, and those it can be rolled back to.

        A roll-back takes the last one off. What the alias says counts: a move that the history holds but that never
        happened (a crash in between) is dropped, and a move made past us is added.
        """
        held: list[int] = []
        for change in self.history():
            if len(held) > 1 and change.why == "rolled back" and held[-2] == change.version:
                held.pop()
            else:
                held.append(change.version)
        champion = self.aliases().get(CHAMPION)
        while held and held[-1] != champion:
            held.pop()
        return held or ([] if champion is None else [champion])

    def set_champion(self, version: int, why: str) -> None:
        """Writes the move into the history, then moves the alias."""
        changes = [*self.history(), Change(version=version, at=datetime.now(UTC), why=why)]
        text = json.dumps([change.model_dump(mode="json") for change in changes[-500:]])
        self.client.set_registered_model_tag(self.name, HISTORY_TAG, text)
        self.client.set_registered_model_alias(self.name, CHAMPION, str(version))

    def log_run(self, run_name: str, recipe: Recipe, artifacts: Mapping[str, Artifact], tags: Mapping[str, str]) -> str:
        """An MLflow run with the recipe as parameters and every stage's metrics and curves. Returns its id."""
        from mlflow.entities import Metric, Param

        self._ensure_model()
        run = self.client.create_run(self._experiment(recipe.name), run_name=run_name, tags=dict(tags))
        now = int(time.time() * 1000)
        parameters = [Param(_key(k), str(v)[:PARAMETER_LENGTH]) for k, v in _flat(recipe.model_dump(mode="json"))]
        metrics = [
            Metric(_key(f"{name}/{metric}"), value, now, 0)
            for name, artifact in artifacts.items()
            for metric, value in artifact.metrics.items()
        ]
        metrics += [
            Metric(_key(f"{name}/{metric} curve"), float(value), now, int(step))
            for name, artifact in artifacts.items()
            for metric, curve in read_curves(Path(artifact.path)).items()
            for step, value in curve
        ]
        for begin in range(0, len(parameters), PARAMETERS_PER_CALL):
            self.client.log_batch(run.info.run_id, params=parameters[begin : begin + PARAMETERS_PER_CALL])
        for begin in range(0, len(metrics), METRICS_PER_CALL):
            self.client.log_batch(run.info.run_id, metrics=metrics[begin : begin + METRICS_PER_CALL])
        self.client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    def log_metrics(self, run_id: str, values: Mapping[str, float]) -> None:
        """Adds figures to the run of a version."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(run_id, metrics=[Metric(_key(name), value, now, 0) for name, value in values.items()])

    def _ensure_model(self) -> None:
        if not any(model.name == self.name for model in _pages(self.client.search_registered_models)):
            self.client.create_registered_model(self.name)

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # In a local store MLflow would put artifacts under the current folder; a server knows its own place.
        place = self.workspace.folder("mlruns", name).as_uri() if self._is_local() else None
        return str(self.client.create_experiment(name, artifact_location=place))

    def _is_local(self) -> bool:
        return not self.workspace.mlflow_uri.startswith(("http://", "https://"))

    def _source(self, folder: Path, run_id: str) -> str:
        """Where MLflow says the files are. A server does not see our folder: it is given a copy."""
        if self._is_local():
            return folder.as_uri()
        self.client.log_artifacts(run_id, str(folder), "model")
        return f"runs:/{run_id}/model"


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """An artifact's curves, ``{metric: [(step, value), …]}``; empty where it has none."""
    path = folder / "curves.json"
    if not path.exists():
        return {}
    curves = json.loads(path.read_text("utf-8"))
    return {name: [(int(step), float(value)) for step, value in curve] for name, curve in curves.items()}


def _pages(search: Any, **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(page_token=token, **arguments)
        yield from page
        token = page.token
        if not token:
            return


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _key(name: str) -> str:
    """A name that MLflow takes: letters, digits, and ``_-. :/``."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]
