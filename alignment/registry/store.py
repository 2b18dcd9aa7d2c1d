"""MLflow, as the registry uses it: one registered model's entries, aliases, history and runs."""

import json
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from alignment.recipe.recipe import Recipe
from alignment.records import Artifact
from alignment.registry.database import prepare, sqlite_file
from alignment.registry.records import Change
from alignment.workspace import Workspace

CHAMPION = "champion"
CANDIDATE = "candidate"
MOVE_TAG = "champion.move."  # one tag a move, with its number: MLflow keeps 5,000 characters in a tag
OLD_HISTORY_TAG = "champion.history"  # where all moves stood in one tag, which is read and no longer written
WHY_LENGTH = 4000
SETTLED_TAG = "settled"  # a version's alias was set: what is left to do after a crash between entry and alias
METRICS_PER_CALL, PARAMETERS_PER_CALL, ROWS_PER_CALL = 1000, 100, 1000  # within MLflow's limits
PARAMETER_LENGTH = 6000


@lru_cache(maxsize=4)
def connect(uri: str) -> Any:
    """An MLflow client for a store, its tables made on the first call (about 5 s on SQLite), silent.

    Raises InputError for a database that this MLflow cannot use (:func:`alignment.registry.database.prepare`).
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    prepare(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def is_own(workspace: Workspace) -> bool:
    """Whether MLflow's store is the workspace's own file, and no other workspace registers there."""
    file = sqlite_file(workspace.mlflow_uri)
    return file is not None and file.resolve().parent == workspace.root.resolve()


@dataclass(frozen=True, slots=True)
class ModelState:
    """What MLflow holds of a registered model beside its versions: ``aliases``, and every move of the champion's."""

    aliases: dict[str, int]
    history: tuple[Change, ...] = ()  # oldest first
    last_number: int = 0  # of the newest move

    def aliases_of(self, version: int) -> list[str]:
        """One version's aliases."""
        return sorted(alias for alias, holder in self.aliases.items() if holder == version)

    def held(self) -> list[int]:
        """The champion, last, and those it can be rolled back to.

        A roll-back takes the last one off. What the alias says counts: a move that the history holds but that never
        happened (a crash in between) is dropped, and a move made past us is added.
        """
        held: list[int] = []
        for change in self.history:
            if len(held) > 1 and change.why == "rolled back" and held[-2] == change.version:
                held.pop()
            else:
                held.append(change.version)
        champion = self.aliases.get(CHAMPION)
        while held and held[-1] != champion:
            held.pop()
        return held or ([] if champion is None else [champion])


class RegistryStore:
    """The entries of one registered model."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.workspace, self.name = workspace, name
        self.client = connect(workspace.mlflow_uri)

    @staticmethod
    def models(workspace: Workspace) -> dict[str, ModelState]:
        """The registered models by name. Makes no store where there is none yet."""
        uri = workspace.mlflow_uri
        file = sqlite_file(uri)
        if file is not None and not file.exists():
            return {}
        return {model.name: _state(model) for model in pages(connect(uri).search_registered_models)}

    def alone(self) -> FileLock:
        """One process of this workspace at a time changes the model; the lock ends with its holder."""
        return FileLock(self.workspace.folder("registry", self.name) / ".lock")

    def folder(self, version: int) -> Path:
        """Where a version's files are."""
        return self.workspace.folder("registry", self.name) / f"v{version}"

    def all(self) -> list[Any]:
        """Every entry that :mod:`alignment.registry` made, oldest first."""
        return [row for row in self._rows() if "identity" in row.tags]

    def find(self, identity: str) -> list[Any]:
        """The entries of one candidate under one verdict."""
        return [row for row in self.all() if row.tags["identity"] == identity]

    def get(self, version: int) -> Any:
        """One entry."""
        return self.client.get_model_version(self.name, str(version))

    def next_version(self) -> int:
        """The number that MLflow should give the next entry."""
        return 1 + max((int(row.version) for row in self._rows()), default=0)

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
        elif (history := self.state().history) and history[-1].version == version:
            self._follow_history()
        elif all(change.version < version for change in history):  # else a newer one overtook it
            self.set_champion(version, "the gate passed")
        self.client.set_model_version_tag(self.name, str(version), SETTLED_TAG, "true")

    def state(self) -> ModelState:
        """The model's aliases and history, as they are now."""
        return _state(self.client.get_registered_model(self.name))

    def set_champion(self, version: int, why: str) -> None:
        """Writes the move into the history, then moves the alias.

        Each move is a tag of its own, so that two workspaces which share a server both have theirs; where they move
        the alias at the same time, it ends where the newest move in the history says.
        """
        number = 1 + self.state().last_number
        change = Change(version=version, at=datetime.now(UTC), why=why[:WHY_LENGTH])
        key = f"{MOVE_TAG}{number:08d}.{uuid.uuid4().hex[:12]}"
        self.client.set_registered_model_tag(self.name, key, change.model_dump_json())
        self._follow_history()

    def _follow_history(self) -> None:
        while True:
            state = self.state()
            newest = state.history[-1].version
            if state.aliases.get(CHAMPION) == newest:
                return
            self.client.set_registered_model_alias(self.name, CHAMPION, str(newest))

    def _rows(self) -> list[Any]:
        """Every entry of the model, whoever made it, oldest first."""
        rows = pages(self.client.search_model_versions, filter_string=f"name='{self.name}'", max_results=ROWS_PER_CALL)
        return sorted(rows, key=lambda row: int(row.version))

    def log_run(self, run_name: str, recipe: Recipe, artifacts: Mapping[str, Artifact], tags: Mapping[str, str]) -> str:
        """An MLflow run with the recipe as parameters and every stage's metrics and curves. Returns its id."""
        from mlflow.entities import Metric, Param

        self._ensure_model()
        run = self.client.create_run(experiment_id(self.workspace, recipe.name), run_name=run_name, tags=dict(tags))
        now = int(time.time() * 1000)
        parameters = [
            Param(metric_name(k), str(v)[:PARAMETER_LENGTH]) for k, v in _flat(recipe.model_dump(mode="json"))
        ]
        metrics = [
            Metric(metric_name(f"{name}/{metric}"), value, now, 0)
            for name, artifact in artifacts.items()
            for metric, value in artifact.metrics.items()
        ]
        metrics += [
            Metric(metric_name(f"{name}/{metric} curve"), float(value), now, int(step))
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
        self.client.log_batch(
            run_id, metrics=[Metric(metric_name(name), value, now, 0) for name, value in values.items()]
        )

    def _ensure_model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _source(self, folder: Path, run_id: str) -> str:
        """Where MLflow says the files are. A server does not see our folder: it is given a copy."""
        if _is_local(self.workspace):
            return folder.as_uri()
        self.client.log_artifacts(run_id, str(folder), "model")
        return f"runs:/{run_id}/model"


def experiment_id(workspace: Workspace, name: str) -> str:
    """The id of an experiment, made where it is missing by whoever is first, brought back where it was deleted."""
    from mlflow.exceptions import MlflowException

    client = connect(workspace.mlflow_uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # In a local store MLflow would put artifacts under the current folder; a server knows its own place.
        place = workspace.folder("mlruns", name).as_uri() if _is_local(workspace) else None
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException as error:  # another process, perhaps of another workspace, was faster
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def _is_local(workspace: Workspace) -> bool:
    return not workspace.mlflow_uri.startswith(("http://", "https://"))


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """An artifact's curves, ``{metric: [(step, value), …]}``; empty where it has none."""
    path = folder / "curves.json"
    if not path.exists():
        return {}
    curves = json.loads(path.read_text("utf-8"))
    return {name: [(int(step), float(value)) for step, value in curve] for name, curve in curves.items()}


def _state(model: Any) -> ModelState:
    """A registered model's state from its MLflow entity."""
    old = [Change.model_validate(change) for change in json.loads(model.tags.get(OLD_HISTORY_TAG, "[]"))]
    keys = sorted(key for key in model.tags if key.startswith(MOVE_TAG))
    return ModelState(
        aliases={alias: int(version) for alias, version in model.aliases.items()},
        history=(*old, *(Change.model_validate_json(model.tags[key]) for key in keys)),
        last_number=max((int(key.removeprefix(MOVE_TAG).partition(".")[0]) for key in keys), default=0),
    )


def pages(search: Any, **arguments: Any) -> Iterator[Any]:
    """All that one of MLflow's searches finds, page after page."""
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


def metric_name(name: str) -> str:
    """A name that MLflow takes: letters, digits, and ``_-. :/``."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]
