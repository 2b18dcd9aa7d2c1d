"""`rlhf runs list`, `show` and `diff`, `rlhf stop` and `rlhf logs`."""

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from alignment.errors import Fault, InputError, StageError
from alignment.plain_text import indented
from alignment.workspace import Workspace
from flows.command_lines import rlhf_line
from flows.console import PlainConsole, print_json, styled
from flows.monitoring.logs import LOG_FILE
from flows.run_diff import MetricValue, RunDiff, compare
from flows.run_record import RunRecord, read_record
from flows.runs import RunSummary, find_run, read_report, run_folders, summarise
from flows.shutdown import TOTAL_SECONDS

COLOURS = {
    "promoted": "green", "completed": "green", "running": "cyan", "waiting": "yellow", "awaits approval": "yellow",
    "refused": "red", "failed": "red", "interrupted": "red", "elsewhere": "cyan",
}  # fmt: skip
POLL_SECONDS = 0.3
WIDTH = 160  # of tables at least: a terminal breaks their lines, and cuts no name short
STOP_SECONDS = TOTAL_SECONDS + 32.0  # a process ends itself within the first; a deployment's worker has to hear of it


def runs_list_command(workspace: Path, *, as_json: bool) -> None:
    """Every run of a workspace, newest first."""
    summaries = [summarise(folder) for folder in run_folders(Workspace(workspace))]
    if as_json:
        print(json.dumps([summary.model_dump(mode="json") for summary in summaries], indent=2))
        return
    table = Table("run", "state", "began", "took", "made", "cached", "version", box=None, pad_edge=False)
    for one in summaries:
        table.add_row(
            one.run, _coloured(one.state), f"{one.started.astimezone():%Y-%m-%d %H:%M}", _took(one.seconds),
            str(one.made), str(one.cached), one.version or "",
        )  # fmt: skip
    _console().print(table if summaries else f"no run in {workspace} yet")


def runs_show_command(name: str | None, workspace: Path, *, as_json: bool) -> None:
    """One run: how it stands, its stages, its data, and what to do next."""
    folder = find_run(Workspace(workspace), name, reported=False)
    summary, report, record = summarise(folder), read_report(folder) or {}, read_record(folder)
    if as_json:
        value: dict[str, Any] = summary.model_dump(mode="json")
        value["data"] = {what: file.model_dump(mode="json") for what, file in (record.data if record else {}).items()}
        value |= {key: report.get(key) for key in ("recipe_digest", "commit", "stages", "gate", "commands")}
        print(json.dumps(value, indent=2))
        return
    console = _console()
    console.print(_title(summary, f", began {summary.started.astimezone():%c}"))
    if report:
        _print_stages(console, report["stages"])
    if report and report.get("gate"):
        from alignment.evaluation.gate import GateVerdict  # its tests need SciPy, which takes its time

        for line in GateVerdict.model_validate(report["gate"]).lines:
            console.print(f"gate     {line}")
    for what, file in (record.data if record else {}).items():
        console.print(f"data     {what.rpartition('/')[2]} {file.digest[:12]} {file.path}")
    console.print(f"recipe   {folder / 'recipe.yaml'}")
    if report:
        console.print(f"report   {folder / 'report.html'}")
    if (folder / LOG_FILE).exists():
        console.print(f"log      {rlhf_line('logs', summary.run, workspace=workspace, here=True)}")
    if summary.state in ("interrupted", "failed"):
        again = rlhf_line("run", folder / "recipe.yaml", workspace=workspace, here=True)
        console.print(f"go on    {again}")


def _print_stages(console: PlainConsole, stages: Sequence[dict[str, Any]]) -> None:
    table = Table("stage", "kind", "status", "took", "made", box=None, pad_edge=False)
    for stage in stages:
        status = "cached" if stage["cached"] else stage["status"]
        made = ", ".join(f"{one['name']}@{one['version']}:{one['digest'][:12]}" for one in stage["outputs"])
        error = stage["error"].splitlines()[0] if stage["error"] else ""
        table.add_row(stage["name"], stage["kind"], status, _took(stage["seconds"]), made or error)
    console.print(table)


def runs_diff_command(first: str, second: str, workspace: Path, *, as_json: bool) -> None:
    """What two runs differ in."""
    space = Workspace(workspace)
    diff = compare(find_run(space, first, reported=False), find_run(space, second, reported=False))
    if as_json:
        print_json(diff.model_dump_json(indent=2))
        return
    console = _console()
    for summary in (diff.a, diff.b):
        console.print(_title(summary, f", {summary.started.astimezone():%c}"))
    _print_inputs(console, diff)
    _print_metrics(console, diff)


def _print_inputs(console: PlainConsole, diff: RunDiff) -> None:
    """Settings, data and artifacts that differ, a table each; a line for what is the same."""
    names = (diff.a.run, diff.b.run)
    if diff.settings:
        table = Table("setting", *names, box=None, pad_edge=False)
        for setting in diff.settings:
            table.add_row(setting.setting, *(_value(value) for value in (setting.a, setting.b)))
        console.print("", table)
    if diff.data:
        table = Table("data", *names, box=None, pad_edge=False)
        for file in diff.data:
            cells = ((file.a_digest, file.a), (file.b_digest, file.b))
            table.add_row(file.name, *(f"{digest[:12]} {path}" if digest else "–" for digest, path in cells))
        console.print("", table)
    if diff.stages:
        table = Table("stage", *names, box=None, pad_edge=False)
        for stage in diff.stages:
            table.add_row(stage.stage, stage.a or "–", stage.b or "–")
        console.print("", table)
    same = [what for what, changes in (("settings", diff.settings), ("data", diff.data), ("artifacts", diff.stages))
            if not changes]  # fmt: skip
    if same:
        console.print(f"\nthe same: {', '.join(same)}")


def _print_metrics(console: PlainConsole, diff: RunDiff) -> None:
    if diff.metrics:
        table = Table(
            "stage", "metric", diff.a.run, diff.b.run, "difference", "95 % intervals", box=None, pad_edge=False
        )
        before = ""
        for one in diff.metrics:
            difference = "" if one.difference is None else f"{one.difference:+.4g}"
            stage, before = ("" if one.stage == before else one.stage), one.stage
            table.add_row(stage, one.metric, _estimate(one.a), _estimate(one.b), difference, one.intervals or "")
        console.print("", table)
    console.print(f"\n{diff.same_metrics} metrics are equal in both" if diff.same_metrics else "", end="\n")


def stop_command(name: str, workspace: Path, *, as_json: bool) -> None:
    """Ends a run under way as SIGTERM does, and waits for its end. Raises StageError where it does not come."""
    folder = find_run(Workspace(workspace), name, reported=False)
    summary, record = summarise(folder), read_record(folder)
    if summary.state not in ("running", "elsewhere") or record is None:
        raise InputError([Fault(f"{name} is not under way: it is {summary.state}", "name a run that is")])
    by_server = record.flow_run is not None and _cancel(record)
    if not by_server:
        _terminate(name, record)
    end = time.monotonic() + STOP_SECONDS
    while summarise(folder).state == "elsewhere" or record.process.alive:
        if time.monotonic() > end:
            raise StageError(f"{name} did not end: process {record.process.pid} still runs")
        time.sleep(POLL_SECONDS)
    again = rlhf_line("run", folder / "recipe.yaml", workspace=workspace, here=True)
    if as_json:
        print(json.dumps({"run": name, "stopped": True, "by": "cancellation" if by_server else "SIGTERM"}))
        return
    console = _console()
    console.print(f"{name} has ended; what it made and its checkpoint are kept")
    console.print(f"go on with  {again}")


def _terminate(name: str, record: RunRecord) -> None:
    """Sends SIGTERM to a run's process."""
    process = record.process
    if not process.here:
        problem = f"{name} runs on {process.place.split()[0]}, in a place that cannot be reached from here"
        raise InputError([Fault(problem, "stop it there, or on the dashboard")])
    if process.alive:
        os.kill(process.pid, signal.SIGTERM)


def _cancel(record: RunRecord) -> bool:
    """Cancels a deployment's flow run, so that its worker ends it and it counts as cancelled, not as crashed.

    False where its server is away.
    """
    import httpx

    body = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": False}
    try:
        answer = httpx.post(f"{record.api}/flow_runs/{record.flow_run}/set_state", json=body, timeout=20)
        return answer.is_success and answer.json().get("status") == "ACCEPT"
    except (httpx.HTTPError, ValueError):
        return False


def logs_command(name: str | None, workspace: Path, *, follow: bool, as_json: bool) -> None:
    """A run's log, a line an event; with ``follow`` to the run's end."""
    folder = find_run(Workspace(workspace), name, reported=False)
    path = folder / LOG_FILE
    if not path.exists():
        problem = f"{folder.name} has no log"
        raise InputError([Fault(problem, "runs of earlier versions kept none; `rlhf runs show` says how it ended")])
    console = _console()
    with path.open(encoding="utf-8") as file:
        while True:
            running = follow and summarise(folder).state == "running"
            while line := file.readline():
                while not line.endswith("\n"):  # it is being written
                    time.sleep(POLL_SECONDS)
                    line += file.readline()
                if as_json:
                    print_json(line.rstrip("\n"))
                else:
                    _print_event(console, json.loads(line))
            if not running:
                return
            time.sleep(POLL_SECONDS)


def _print_event(console: PlainConsole, event: dict[str, Any]) -> None:
    """Time of day, level where it is a warning or worse, the message, the newest metrics, a traceback."""
    level = "" if event["level"] == "info" else f"{event['level'].upper()} "
    metrics = "  ".join(f"{name} {value:.4g}" for name, value in event.get("metrics", {}).items())
    text = f"{event['time'][11:19]} {level}{event['message']}" + (f"  {metrics}" if metrics else "")
    console.print(indented(text), style="red" if level else None)
    if event.get("error"):
        console.print(indented(f"\n{event['error']}").removeprefix("\n"))


def _console() -> PlainConsole:
    return PlainConsole(width=max(WIDTH, PlainConsole().width))


def _coloured(state: str) -> Text:
    return styled((state, COLOURS[state]))


def _title(summary: RunSummary, when: str) -> Text:
    return styled((summary.run, "bold"), " ", (summary.state, COLOURS[summary.state]), when)


def _took(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


def _value(value: Any) -> str:
    return "–" if value is None else str(value)


def _estimate(estimate: MetricValue | None) -> str:
    if estimate is None:
        return "–"
    interval = "" if estimate.low is None or estimate.high is None else f" ({estimate.low:.3g} – {estimate.high:.3g})"
    return f"{estimate.value:.4g}{interval}"
