"""What the commands do, each light to start: a run that is all cache imports neither torch nor transformers."""

import getpass
import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from alignment.faults import Fault, InputError
from alignment.loading import load_recipe, recipe_digest, resolve_data, resolve_model
from alignment.recipe import BASE, Recipe
from alignment.workspace import Workspace
from flows import services

if TYPE_CHECKING:
    from alignment.registry import RegisteredVersion

RECIPES = Path(__file__).parent / "recipes"


def find_recipe(given: str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one."""
    path = Path(given)
    shipped = RECIPES / f"{given}.yaml"
    return shipped if not path.is_file() and shipped.exists() else path  # a folder of that name is no recipe


def prepare(given: str, overrides: list[str]) -> tuple[Recipe, Path]:
    """The recipe with its model's paths made absolute, and its file. Raises InputError with every fault."""
    path = find_recipe(given)
    recipe = load_recipe(path, overrides)
    return recipe.model_copy(update={"model": resolve_model(recipe, path)}), path


def check_command(given: str, workspace: Path, overrides: list[str], *, as_json: bool) -> None:
    """Prints that all is well, or raises InputError with every fault."""
    space = Workspace(workspace.resolve())
    services.quiet_environment(space)
    from alignment.check import check_recipe
    from flows.cluster import cluster_faults
    from flows.schedule import running_faults

    recipe, path = prepare(given, overrides)
    faults = check_recipe(recipe, path, space) + cluster_faults(recipe) + running_faults(recipe)
    if as_json:
        rows = [
            {"file": f.file, "row": f.row, "field": f.field, "problem": f.problem, "remedy": f.remedy} for f in faults
        ]
        print(json.dumps({"recipe": recipe.name, "digest": recipe_digest(recipe), "faults": rows}, indent=2))
    if faults:
        raise InputError(faults)
    if not as_json:
        Console().print(f"{path}: {len(recipe.stages)} stages, nothing wrong", highlight=False)


def run_command(given: str, workspace: Path, overrides: list[str], *, only: str | None, start: str | None) -> int:
    """Runs a recipe and returns the exit code: 0, or 1 where the gate refused or a stage failed."""
    from flows.display import SteadyConsole

    console = SteadyConsole()
    began = time.monotonic()
    recipe, path = prepare(given, overrides)
    space = Workspace(workspace.resolve())
    services.quiet_environment(space)
    services.reach_named_servers(space)
    from flows.launch import checked, launch

    server = services.begin(space, "prefect")  # starts while the recipe is checked
    checked(recipe, path, space)
    name = next_run_name(space, recipe.name)
    data = resolve_data(recipe, path)
    return launch(recipe, data, space, server, name, only, start, console, began)


def next_run_name(workspace: Workspace, recipe: str) -> str:
    """``<recipe>-<n>``, one more than the newest."""
    taken = [int(m[1]) for p in workspace.folder("runs").iterdir() if (m := re.fullmatch(rf"{recipe}-(\d+)", p.name))]
    return f"{recipe}-{max(taken, default=0) + 1}"


def find_run(workspace: Workspace, name: str | None) -> Path:
    """The folder of a run with a report, by name or the newest. Raises InputError where there is none."""
    reports = sorted(workspace.folder("runs").glob("*/report.json"), key=lambda path: path.stat().st_mtime)
    for path in reversed(reports):
        if name in (None, path.parent.name):
            return path.parent
    known = ", ".join(path.parent.name for path in reports) or "none"
    raise InputError([Fault(f"no report of run {name!r}" if name else "no run has a report", f"the runs are: {known}")])


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
    services.quiet_environment(space)
    names = ("prefect", "mlflow")
    if stop:
        words = {name: "stopped" if services.stop(space, name) else "was not running" for name in names}
    else:
        begun = [services.begin(space, name) for name in names]
        said = Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print
        words = {service.name: services.wait(space, service, said).url for service in begun}
    if as_json:
        print(json.dumps(words))
        return
    for name, word in words.items():
        Console().print(f"{name:<8} {word}", highlight=False, soft_wrap=True)


def models_list_command(workspace: Path, *, as_json: bool) -> None:
    """Every registered version, newest first."""
    space = Workspace(workspace.resolve())
    services.quiet_environment(space)
    from alignment.registry import list_versions

    versions = list_versions(space)
    if as_json:
        print(json.dumps([version.model_dump(mode="json") for version in versions], indent=2))
        return
    table = Table("version", "aliases", "gate", "run", "candidate", "registered", box=None)
    for version in versions:
        table.add_row(
            str(version), ", ".join(version.aliases), _gate_word(version), version.run,
            str(version.candidate), f"{version.registered:%Y-%m-%d %H:%M}",
        )  # fmt: skip
    Console().print(table if versions else "no version is registered yet: run a recipe with a gate")


def _gate_word(version: "RegisteredVersion") -> str:
    """What the gate, and the person it may ask, said of a version."""
    if version.waits:
        return "waits for approval"
    return "passed" if version.passed else "refused"


def models_show_command(reference: str, workspace: Path, *, as_json: bool) -> None:
    """One version: where it is, what it was made of, and whether all of that is still as it was."""
    space = Workspace(workspace.resolve())
    services.quiet_environment(space)
    from alignment.registry import show

    details = show(space, reference)
    if as_json:
        print(details.model_dump_json(indent=2))
        return
    console = Console(highlight=False, soft_wrap=True)
    version = details.version
    console.print(f"[bold]{version}[/bold]  {', '.join(version.aliases)}\nfolder   {version.folder}")
    console.print(f"run      {version.run} (recipe {version.recipe} {version.recipe_digest[:12]})")
    console.print(
        f"intact   {'yes' if details.intact else 'no: ' + '; '.join(f'{k}: {v}' for k, v in details.problems.items())}"
    )
    if details.record:
        for check in details.record.verdict.checks:
            console.print(f"gate     {check}")
        for node in details.record.lineage.nodes:
            console.print(f"lineage  {node}", markup=False)
    for change in details.history:
        if change.version == version.version:
            console.print(f"champion {change.at:%Y-%m-%d %H:%M} {change.why}", markup=False)
    for found in details.tasks:
        for task, figures in found.results.items():
            words = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            console.print(f"lm-eval  {task} ({found.n.get(task, 0)} examples): {words}", markup=False)


def models_promote_command(reference: str, workspace: Path, reason: str, by: str | None, *, force: bool) -> None:
    """Makes a version the champion; who did it and why is kept with the version."""
    space = Workspace(workspace.resolve())
    services.quiet_environment(space)
    from alignment.registry import promote

    version = promote(space, reference, despite_gate=force, by=_account() if by is None else by, reason=reason)
    Console().print(f"{version} is the champion", highlight=False)
    _announce(space, version)


def _account() -> str:
    """Who gives commands here; nobody where the machine does not say, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def models_rollback_command(name: str, workspace: Path) -> None:
    """Makes the champion before this one the champion again."""
    space = Workspace(workspace.resolve())
    services.quiet_environment(space)
    from alignment.registry import rollback

    version = rollback(space, name)
    Console().print(f"{version} is the champion again", highlight=False)
    _announce(space, version)


def _announce(space: Workspace, version: "RegisteredVersion") -> None:
    """Tells deployments that wait for a new champion of one that a person chose, where a server runs."""
    server = services.find(space, "prefect")
    if server is None:
        return
    os.environ.setdefault("PREFECT_API_URL", server.api)
    from flows.schedule import CHAMPION
    from preference_ui.announcing import send_event

    payload = {"model": version.name, "version": version.version}
    send_event(CHAMPION, f"rlhf.models.{version.name}", {"rlhf.recipe": "by hand"}, payload)


def shown_stages(recipe: Recipe) -> dict[str, str]:
    """The rows of the display: the base model, the recipe's stages, and the registry where there is a gate."""
    stages = {BASE: "base"} | {name: stage.kind for name, stage in recipe.stages.items()}
    return stages | ({"register": "register"} if recipe.gate else {})
