"""What is said of a run that has ended: its final state, and what to do next."""

from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from alignment.report import Command
from flows.command_lines import rlhf_line
from flows.pipeline.run_state import Run


def next_commands(run: Run) -> list[Command]:
    """What to do next, each as a line for the shell that works from any folder."""
    space = run.workspace.root
    recipe = space.resolve() / "runs" / run.request.run / "recipe.yaml"
    repeat = "Repeat this run, or go on with it where it stopped"
    commands = [Command(purpose=repeat, line=rlhf_line("run", recipe, workspace=space))]
    if run.finish:
        version = run.finish.reference
        commands.insert(0, Command(purpose="Talk with this version", line=rlhf_line("chat", version, workspace=space)))
        if run.finish.verdict.waits and not run.finish.approved:
            approve = rlhf_line("models", "promote", version, "--reason", "…", workspace=space)
            commands.insert(0, Command(purpose="Approve this version, which waits for a person", line=approve))
        lineage = rlhf_line("models", "show", version, "--json", workspace=space)
        commands.append(Command(purpose="Its whole lineage", line=lineage))
    return commands


def final_state(run: Run) -> State[Any]:
    """The flow's last state: a refusal is a failure by name, so that automations can tell it from a broken stage."""
    if run.waiting:
        return Completed(name="Waiting", message=run.waiting)
    if run.finish is None:
        return Completed(message="no gate in this run")
    if run.finish.promoted:
        return Completed(name="Promoted", message=run.finish.sentence)
    if run.finish.verdict.waits:
        promote = rlhf_line("models", "promote", run.finish.reference, workspace=run.workspace.root)
        message = f"{run.finish.sentence}. Read the report; `{promote}` approves it, and until then it is a candidate"
        return Completed(name="AwaitingApproval", message=message)
    return Failed(name="Refused", message=run.finish.sentence)
