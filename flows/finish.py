"""What follows the stages: the gate's verdict, and the version's place in the registry."""

import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from prefect import task
from pydantic import BaseModel

from alignment.digests import code_digest, digest_of
from alignment.evaluation.gate import GateVerdict, decide
from alignment.loading import recipe_digest
from alignment.recipe import EvaluateStage, Recipe
from alignment.records import Artifact
from alignment.workspace import Workspace

RETRIES = [2.0, 10.0]


class Finish(BaseModel):
    """How a run with a gate ended."""

    verdict: GateVerdict
    name: str
    version: int
    folder: str
    alias: str
    work_seconds: float

    @property
    def sentence(self) -> str:
        """The outcome in one sentence, with what failed and by how much."""
        if self.verdict.passed:
            place = "is the champion" if self.alias == "champion" else "was champion before"
            return f"{self.name} v{self.version} {place}: every condition of the gate holds"
        failed = "; ".join(str(check) for check in self.verdict.checks if not check.passed)
        return f"{self.name} v{self.version} was refused: {failed}"


def finish(recipe: Recipe, made: Mapping[str, Artifact], workspace: Workspace, run: str) -> dict[str, Any]:
    """Decides, registers and moves the alias. Returns a :class:`Finish` as JSON."""
    import time

    from alignment.models.export import export_merged
    from alignment.registry import Provenance, register

    assert recipe.gate is not None
    settings = recipe.stages[recipe.gate.evaluation]
    assert isinstance(settings, EvaluateStage)
    started = time.perf_counter()
    verdict = decide(recipe.gate, made[recipe.gate.evaluation].metrics)
    base = made["base"]
    version = register(
        workspace,
        recipe,
        made,
        settings.model,
        verdict,
        Provenance(run=run, recipe_digest=recipe_digest(recipe), commit=commit()),
        merge=lambda artifact, target: export_merged(artifact, base, recipe, target),
    )
    alias = "champion" if "champion" in version.aliases else next(iter(version.aliases), "")
    result = Finish(
        verdict=verdict,
        name=version.name,
        version=version.version,
        folder=version.folder,
        alias=alias,
        work_seconds=time.perf_counter() - started,
    )
    return result.model_dump(mode="json")


def finish_task(recipe: Recipe, made: Mapping[str, Artifact], workspace: Workspace, run: str) -> Any:
    """Runs :func:`finish` as a task, cached by what it decides on; returns the task's final state."""
    assert recipe.gate is not None
    evaluation = made[recipe.gate.evaluation]
    settings = recipe.stages[recipe.gate.evaluation]
    assert isinstance(settings, EvaluateStage)
    key = digest_of(
        [
            recipe.model.registered_name,
            recipe.gate.model_dump(mode="json"),
            evaluation.digest,
            made[settings.model].digest,
            code_digest("alignment.registry"),
            str(workspace.root.resolve()),
        ]
    )
    return task(
        name="register",
        task_run_name="register",
        tags={"register"},
        cache_key_fn=lambda _context, _parameters: key,
        persist_result=True,
        result_serializer="json",
        retries=len(RETRIES),
        retry_delay_seconds=RETRIES,
        retry_condition_fn=lambda _task, _run, state: isinstance(state.data, ConnectionError | TimeoutError),
    )(finish)(recipe, made, workspace, run, return_state=True)


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
