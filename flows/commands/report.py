"""`rlhf report` and `rlhf dashboard`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from alignment.workspace import Workspace
from flows.runs import find_run
from flows.services import servers
from flows.services.process_records import settle

if TYPE_CHECKING:
    pass


def report_command(name: str | None, workspace: Path, *, as_json: bool) -> None:
    """Where a run's report is, and its stages."""
    folder = find_run(Workspace(workspace.resolve()), name)
    text = (folder / "report.json").read_text("utf-8")
    if as_json:
        print(text)
        return
    report = json.loads(text)
    table = Table("stage", "kind", "status", "seconds", box=None)
    for stage in report["stages"]:
        status = "cached" if stage["cached"] else stage["status"]
        table.add_row(stage["name"], stage["kind"], status, f"{stage['seconds']:.1f}")
    console = Console()
    console.print(table)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True, highlight=False)


def dashboard_command(workspace: Path, *, stop: bool, as_json: bool) -> None:
    """Starts, finds or stops the Prefect server and the MLflow page."""
    space = Workspace(workspace.resolve())
    servers.quiet_environment(space)
    names = ("prefect", "mlflow")
    if stop:
        words = {name: "stopped" if servers.stop(space, name) else "was not running" for name in names}
    else:
        begun = [servers.begin(space, name) for name in names]
        said = Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print
        words = {service.name: servers.wait(space, service, said).url for service in begun}
        settle(space.root)  # what a server could not be told while it was away
    if as_json:
        print(json.dumps(words))
        return
    for name, word in words.items():
        Console().print(f"{name:<8} {word}", highlight=False, soft_wrap=True)
