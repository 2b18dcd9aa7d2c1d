"""A run under way: what was asked for, and what has been made so far."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from prefect.client.schemas.objects import State
from pydantic import BaseModel

from alignment.recipe.recipe import Recipe
from alignment.recipe.resolved import ResolvedRecipe
from alignment.records import Artifact
from alignment.workspace import Workspace
from flows.pipeline.register import Finish

Status = Literal["completed", "failed", "skipped", "waiting"]


class RunRequest(BaseModel):
    """What a run is asked to do; its fields are the flow's parameters on the dashboard.

    ``only`` runs one stage and ``start`` runs from one on; the stages before are then taken from the cache and nowhere
    else. The stages of ``refresh`` are made anew although the cache knows them. ``ready`` maps a queue of people's
    votes to the digest of the snapshot that the run was started for. ``flow_run`` is the deployment's that asks for it.
    """

    resolved: ResolvedRecipe
    workspace: Path
    run: str
    only: str | None = None
    start: str | None = None
    refresh: tuple[str, ...] = ()
    ready: dict[str, str] = {}
    flow_run: str | None = None

    @property
    def recipe(self) -> Recipe:
        return self.resolved.recipe

    @property
    def data(self) -> dict[str, Path]:
        return self.resolved.data


class WaitingForRaters(Exception):  # noqa: N818  (nothing went wrong)
    """The votes of a queue are not there yet; the message says what people have to do."""


@dataclass(slots=True)
class StageOutcome:
    """How one stage of a run ended."""

    name: str
    kind: str
    status: Status
    cached: bool
    seconds: float
    artifact: Artifact | None = None
    error: str = ""
    note: str = ""


@dataclass(slots=True)
class Run:
    """A run under way: what it made so far."""

    request: RunRequest
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    made: dict[str, Artifact] = field(default_factory=dict)
    states: dict[str, State[Any]] = field(default_factory=dict)  # of the tasks that made them
    outcomes: list[StageOutcome] = field(default_factory=list)
    finish: Finish | None = None
    waits: dict[str, str] = field(default_factory=dict)  # stages that people have to vote for first, and what to do
    used: dict[str, str] = field(default_factory=dict)  # queues whose votes it went on from: their snapshots' digests

    @property
    def waiting(self) -> str:
        """What people have to do before the run can go on; "" where it waits for nobody."""
        return "; ".join(self.waits.values())

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.request.workspace)

    @property
    def recipe(self) -> Recipe:
        return self.request.recipe

    @property
    def report(self) -> Path:
        return self.workspace.root / "runs" / self.request.run / "report.html"
