"""A person's yes before a version becomes the champion, asked for on the dashboard.

The run that asks is suspended: it holds no process and no slot. An answer in the form, or the end of the recipe's
``approval_hours``, ends the waiting. What was asked is kept in the workspace under the run's id, so that the run goes
on from the question when it is answered, and does not work through the recipe again.
"""

import json
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.states import Completed, Failed
from pydantic import BaseModel, Field

from alignment.durable_files import write_text
from alignment.plain_text import markdown, markdown_code
from alignment.recipe.recipe import Recipe
from alignment.registry import promote
from alignment.workspace import Workspace
from flows.command_lines import rlhf_line

KEY = "approval"


class Approval(RunInput):
    """The form on the dashboard. Without ``approve`` the version stays a candidate."""

    approve: bool = Field(description="Whether this version becomes the champion.")
    name: str = Field(description="Who you are: it is kept with the version.", min_length=1, max_length=200)
    comment: str = Field(default="", description="Why.", max_length=3000)


class ApprovalRequest(BaseModel):
    """What a suspended run asks a person."""

    run: str
    version: str
    hours: float

    def recipe(self, space: Workspace) -> Path:
        """The recipe, as it ran."""
        return space.root.resolve() / "runs" / self.run / "recipe.yaml"

    def report(self, space: Workspace) -> str:
        """Where the run's report is."""
        return (space.root.resolve() / "runs" / self.run / "report.html").as_uri()


def asked_before(space: Workspace) -> ApprovalRequest | None:
    """The question of this very run, where it was suspended with one."""
    path = _place(space)
    return ApprovalRequest.model_validate_json(path.read_text("utf-8")) if path is not None and path.exists() else None


def question(space: Workspace, recipe: Recipe, run: str) -> ApprovalRequest | None:
    """What to ask after a run whose gate waits for a person; None where nobody can be asked: in no deployment."""
    path = _place(space)
    if path is None or recipe.gate is None:
        return None
    folder = space.root.resolve() / "runs" / run
    registered = json.loads((folder / "report.json").read_text("utf-8"))["registered"]
    version = f"{registered['name']}/{registered['version']}"
    asked = ApprovalRequest(run=run, version=version, hours=recipe.gate.approval_hours)
    write_text(path, asked.model_dump_json(indent=1) + "\n")
    return asked


def ask(space: Workspace, asked: ApprovalRequest) -> State[Any]:
    """Suspends this run until a person has answered; then promotes the version, or leaves it a candidate."""
    line = rlhf_line("models", "promote", asked.version, workspace=space.root)
    words = (
        f"**{markdown(asked.version)}** holds every condition of its gate. Read its report first: "
        f"<{asked.report(space)}>\n\nWithout an answer in {asked.hours:g} hours it stays a candidate, which "
        f"{markdown_code(line)} can promote later."
    )
    form = Approval.with_initial_data(description=words)
    answer = suspend_flow_run(wait_for_input=form, timeout=int(asked.hours * 3600), key=KEY)
    said = f": {answer.comment.strip()}" if answer.comment.strip() else ""
    if not answer.approve:
        return Failed(name="Refused", message=f"{asked.version} was not approved by {answer.name}{said}")
    version = promote(space, asked.version, by=answer.name, reason=answer.comment)
    return Completed(name="Promoted", message=f"{version} is the champion: approved by {answer.name}{said}")


def _place(space: Workspace) -> Path | None:
    """Where the question of this run is kept; None outside a deployment's run."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        return None
    return space.folder("services", "approvals") / f"{context.flow_run.id}.json"
