"""`rlhf report` and `rlhf dashboard`."""

import json
from pathlib import Path

from rich.table import Table

from flows.console import PlainConsole, print_json
from flows.failures import open_workspace
from flows.runs import find_run
from flows.services import servers
from flows.services.named_servers import require_named
from flows.services.server_outbox import settle


def report_command(name: str | None, workspace: Path, *, as_json: bool) -> None:
    """Where a run's report is, and its stages."""
    folder = find_run(open_workspace(workspace), name)
    text = (folder / "report.json").read_text("utf-8")
    if as_json:
        print_json(text)
        return
    report = json.loads(text)
    table = Table("stage", "kind", "status", "seconds", box=None)
    for stage in report["stages"]:
        status = "cached" if stage["cached"] else stage["status"]
        table.add_row(stage["name"], stage["kind"], status, f"{stage['seconds']:.1f}")
    console = PlainConsole()
    console.print(table)
    console.print(f"report: {folder / 'report.html'}")


def dashboard_command(workspace: Path, *, stop: bool, as_json: bool) -> None:
    """Starts, finds or stops the Prefect server and the MLflow page."""
    space = open_workspace(workspace)
    servers.quiet_environment(space)
    names = ("prefect", "mlflow")
    if stop:
        words = {name: "stopped" if servers.stop(space, name) else "was not running" for name in names}
    else:
        require_named(space, *names)
        begun = [servers.begin(space, name) for name in names]
        said = PlainConsole(stderr=True).print
        words = {service.name: servers.wait(space, service, said).url for service in begun}
        settle(space.root)  # what a server could not be told while it was away
    if as_json:
        print(json.dumps(words))
        return
    for name, word in words.items():
        PlainConsole().print(f"{name:<8} {word}")
