"""The registry of looks: every evaluation that a gate decided on, by the held-out prompts that it asked.

A look is an MLflow run of the experiment ``held-out looks``, beside the versions that the gate decided on: every
recipe of a workspace, and every workspace of a shared MLflow store, counts the same ones. It is written before the gate
decides, so that a crash hides no look; nothing removes it, and one that somebody deletes in MLflow still counts.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from alignment.data.jsonl import read_records
from alignment.data.split import opening
from alignment.evaluation.looks import HeldOutSet, Look, earlier, held_out_set
from alignment.metrics.results import EvaluatedPrompt
from alignment.records import Artifact, Prompt
from alignment.registry.database import sqlite_file
from alignment.registry.store import ROWS_PER_CALL, connect, experiment_id, pages
from alignment.workspace import Workspace

EXPERIMENT = "held-out looks"  # no recipe can have this name
TAG = "look."
NUMBER = "number"


def record_look(workspace: Workspace, evaluation: Artifact, *, run: str, recipe: str, model: str) -> Look:
    """The look that ``evaluation`` is, recorded if it is new: the same evaluation given again is the same look.

    Two workspaces of one store that look at the same time may both get the higher number, never both the lower one.
    """
    held_out = held_out_of(evaluation)
    client = connect(workspace.mlflow_uri)
    with FileLock(workspace.folder("registry") / ".looks.lock"):
        before = looks(workspace)
        if (known := next((look for look in before if look.identity == evaluation.digest), None)) is not None:
            return known
        look = Look(identity=evaluation.digest, held_out=held_out, number=1 + len(earlier(before, held_out)),
                    at=datetime.now(UTC), run=run, recipe=recipe, model=model)  # fmt: skip
        entry = client.create_run(experiment_id(workspace, EXPERIMENT), run_name=f"{recipe} {run}", tags=_tags(look))
        client.set_terminated(entry.info.run_id)
        number = len(earlier(looks(workspace), held_out))  # with what others wrote meanwhile, and this one
        if number > look.number:
            client.set_tag(entry.info.run_id, TAG + NUMBER, str(number))
            look = look.model_copy(update={"number": number})
    return look


def next_number(workspace: Workspace, held_out: HeldOutSet) -> int:
    """Which look at this set the next new evaluation would be. Makes no store where there is none yet."""
    file = sqlite_file(workspace.mlflow_uri)
    if file is not None and not file.exists():
        return 1
    return 1 + len(earlier(looks(workspace), held_out))


def looks(workspace: Workspace) -> list[Look]:
    """Every look that was ever recorded in the workspace's MLflow store, oldest first."""
    from mlflow.entities import ViewType

    client = connect(workspace.mlflow_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    rows = pages(client.search_runs, experiment_ids=[experiment.experiment_id], run_view_type=ViewType.ALL,
                 max_results=ROWS_PER_CALL)  # fmt: skip
    found = [_look(row.data.tags) for row in rows if TAG + "identity" in row.data.tags]
    return sorted(found, key=lambda look: (look.at, look.identity))


def held_out_of(evaluation: Artifact) -> HeldOutSet:
    """The set of prompts that an evaluation asked."""
    rows = read_records(Path(evaluation.path) / "samples.jsonl", EvaluatedPrompt)
    return held_out_set(opening(Prompt(id=row.prompt_id, messages=row.prompt)) for row in rows)


def _tags(look: Look) -> dict[str, str]:
    held_out = look.held_out
    values: dict[str, Any] = {
        "identity": look.identity, NUMBER: look.number, "held_out": held_out.digest, "prompts": held_out.size,
        "sketch": held_out.sketch, "at": look.at.isoformat(), "run": look.run, "recipe": look.recipe,
        "model": look.model,
    }  # fmt: skip
    return {TAG + name: str(value) for name, value in values.items()}


def _look(tags: Mapping[str, str]) -> Look:
    own = {name.removeprefix(TAG): value for name, value in tags.items() if name.startswith(TAG)}
    held_out = HeldOutSet(digest=own["held_out"], size=int(own["prompts"]), sketch=own["sketch"])
    return Look(
        identity=own["identity"], held_out=held_out, number=int(own[NUMBER]), at=datetime.fromisoformat(own["at"]),
        run=own["run"], recipe=own["recipe"], model=own["model"],
    )  # fmt: skip
