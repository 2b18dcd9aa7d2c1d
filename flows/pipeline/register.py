"""What follows the stages: the gate's verdict, and the version's place in the registry."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import BaseModel

from alignment.cache_key import code_digest
from alignment.digests import digest_of
from alignment.durable_files import write_text
from alignment.evaluation.gate import GateLook, GateVerdict, decide
from alignment.evaluation.looks import LEVEL, level_of
from alignment.recipe.base import BASE, CHAMPION
from alignment.recipe.gate import Gate
from alignment.recipe.graph import of_type, seen_by
from alignment.recipe.load import recipe_digest
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.records import Artifact
from alignment.workspace import Workspace
from flows.full_disk import naming_a_full_disk
from flows.pipeline.orchestration import run_task
from flows.pipeline.stage_task import alone

RETRIES = [2.0, 10.0]


class Finish(BaseModel):
    """How a run with a gate ended. ``approved``: the gate asks for a person, and one has promoted the version."""

    verdict: GateVerdict
    name: str
    version: int
    folder: str  # below the workspace, which may be moved
    alias: str
    work_seconds: float
    approved: bool = False

    @property
    def promoted(self) -> bool:
        """Whether the version became the champion, by the gate alone or with a person's approval."""
        return self.verdict.passed or (self.verdict.waits and self.approved)

    @property
    def reference(self) -> str:
        """How commands name the version."""
        return f"{self.name}/{self.version}"

    @property
    def sentence(self) -> str:
        """The outcome in one sentence, with what failed and by how much."""
        if self.verdict.waits and not self.approved:
            return f"{self.name} v{self.version} waits for a person's approval: every condition of the gate holds"
        if self.promoted:
            place = "is the champion" if self.alias == "champion" else "was champion before"
            return f"{self.name} v{self.version} {place}: every condition of the gate holds"
        failed = "; ".join(str(check) for check in self.verdict.checks if not check.passed)
        return f"{self.name} v{self.version} was refused: {failed}"


def finish(
    recipe: Recipe, made: Mapping[str, Artifact], workspace: Workspace, run: str, *, deployed: bool = False
) -> dict[str, Any]:
    """Decides, registers and moves the alias. Returns a :class:`Finish` as JSON.

    ``deployed``: the run was started by a deployment, not by hand. The look at the held-out prompts is recorded first.
    """
    import time

    from alignment.metrics.gate_evidence import evidence
    from alignment.models.export import export_merged
    from alignment.registry import Provenance, register
    from alignment.registry.looks import record_look

    assert recipe.gate is not None
    settings = dict(of_type(recipe.stages, EvaluateStage))[recipe.gate.evaluation]
    started = time.perf_counter()
    evaluated = made[recipe.gate.evaluation]
    seen = record_look(workspace, evaluated, run=run, recipe=recipe.name, model=recipe.model.registered_name)
    spends = spends_level(recipe.gate, deployed=deployed)
    look = GateLook(number=seen.number, prompts=seen.held_out.size, spends=spends,
                    level=level_of(seen.number) if spends else LEVEL)  # fmt: skip
    found = evidence(Path(evaluated.path), evaluated.metrics)
    verdict = decide(recipe.gate, found, settings, champion=CHAMPION in evaluated.inputs, look=look)
    base = seen_by(settings.model, recipe.stages, made)[BASE]
    version = register(
        workspace,
        recipe,
        made,
        settings.model,
        verdict,
        Provenance(run=run, recipe_digest=recipe_digest(recipe), commit=commit()),
        merge=lambda artifact, target: export_merged(artifact, base, recipe.run_settings(), target),
    )
    alias = "champion" if "champion" in version.aliases else next(iter(version.aliases), "")
    result = Finish(
        verdict=verdict,
        name=version.name,
        version=version.version,
        folder=os.path.relpath(version.folder, workspace.root.resolve()),
        alias=alias,
        work_seconds=time.perf_counter() - started,
    )
    return result.model_dump(mode="json")


def spends_level(gate: Gate, *, deployed: bool) -> bool:
    """Whether a run is held to what is left of its held-out prompts' level; else to that of a first look."""
    return gate.looks == "always" or (gate.looks == "deployed" and deployed)


def with_approval(finish: Finish, workspace: Workspace) -> Finish:
    """The same, with what a person has said since: a result from the cache does not know."""
    if not finish.verdict.waits:
        return finish
    from alignment.registry import find

    version = find(workspace, finish.reference)
    alias = "champion" if "champion" in version.aliases else next(iter(version.aliases), "")
    return finish.model_copy(update={"approved": not version.waits, "alias": alias})


def finish_task(
    recipe: Recipe,
    made: Mapping[str, Artifact],
    workspace: Workspace,
    run: str,
    inputs: Sequence[State[Any]],
    *,
    deployed: bool = False,
) -> tuple[Finish, bool]:
    """Runs :func:`finish` as a task after ``inputs``. Says whether it was decided before.

    What it decides on is its key: the same decision on the same artifacts, whose version still stands, is read from
    the workspace and its state is named "Cached".
    """
    from alignment.registry.store import is_own

    assert recipe.gate is not None
    settings = dict(of_type(recipe.stages, EvaluateStage))[recipe.gate.evaluation]
    key = digest_of(
        [
            recipe.model.registered_name,
            recipe.gate.model_dump(mode="json"),
            made[recipe.gate.evaluation].digest,
            made[settings.model].digest,
            code_digest("alignment.registry"),
            None if is_own(workspace) else workspace.mlflow_uri,  # another registry does not have the version
            spends_level(recipe.gate, deployed=deployed),
        ]
    )
    work = task(
        name="register",
        task_run_name="register",
        tags={"register"},
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(RETRIES),
        retry_delay_seconds=RETRIES,
        retry_condition_fn=lambda _task, _run, state: isinstance(state.data, ConnectionError | TimeoutError),
    )(_finish_once)
    given = (recipe, made, workspace, run, key, deployed)
    state, value = run_task(workspace.root, work, _finish_once, *given, inputs=inputs)
    return Finish.model_validate(value), state.name == "Cached"


def _finish_once(
    recipe: Recipe, made: Mapping[str, Artifact], workspace: Workspace, run: str, key: str, deployed: bool
) -> State[dict[str, Any]]:
    memory = workspace.folder("registry", recipe.model.registered_name, "decisions") / f"{key}.json"
    if (before := _decided(workspace, memory)) is not None:
        return before
    with naming_a_full_disk("register", workspace.root), alone(workspace, key, "register"):
        if (before := _decided(workspace, memory)) is not None:  # by another run, while this one waited
            return before
        data = finish(recipe, made, workspace, run, deployed=deployed)
        write_text(memory, json.dumps(data, indent=1) + "\n")
    return Completed(data=data)


def _decided(workspace: Workspace, memory: Path) -> State[dict[str, Any]] | None:
    """The decision that was made before, where its version still stands."""
    try:
        before = Finish.model_validate_json(memory.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not _still_there(workspace, before):
        return None
    found: State[dict[str, Any]] = Completed(name="Cached", data=before.model_dump(mode="json"))
    return found


def _still_there(workspace: Workspace, finish: Finish) -> bool:
    """Whether a version from the cache still has its files and, where that is a file here, its registry."""
    _scheme, slashes, database = workspace.mlflow_uri.partition("sqlite:///")
    return (workspace.root / finish.folder).is_dir() and (not slashes or Path(database).exists())


@cache
def commit() -> str | None:
    """The commit of the code that runs, marked where the tree has changes; None outside a repository."""
    where = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=where, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip()
