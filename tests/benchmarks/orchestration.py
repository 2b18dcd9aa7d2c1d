"""The same tiny pipeline bare, under Prefect, and under Prefect with its training on Ray: what each adds.

    python -m tests.benchmarks orchestration
    python -m tests.benchmarks orchestration -- --workers 2      the stages that train and sample on two workers

Bare are the stages' own functions in one process, one after another; the folders and digests of their artifacts are
made there, too. Prefect's server and Ray are started beforehand, Ray's start is named apart. On Ray each stage that
trains or samples has one worker unless told otherwise, so that what is added is Ray's and not the exchange of
gradients. Each kind runs in a process of its own and prints the seconds of each stage; what stands in "around" is the
time that is not the stages' own work (`work_seconds`).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

KINDS = ("bare", "prefect", "ray")
STAGES = ("sft", "responses", "preferences", "reward", "dpo")
ON_RAY = ("sft", "responses", "reward", "dpo")
FIRST = ("sft", "responses")  # those that start the workers that later ones find: who train, and who sample


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=KINDS, help="run this kind alone, and print its figures as JSON")
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    if asked.kind:
        print(json.dumps(measure(asked.kind, asked.workers)))
        return 0
    found = {}
    for kind in KINDS:
        command = [sys.executable, "-m", "tests.benchmarks.orchestration", "--kind", kind]
        command += ["--workers", str(asked.workers)]
        ended = subprocess.run(command, check=True, capture_output=True, text=True)
        found[kind] = json.loads(ended.stdout.splitlines()[-1])
    show(found)
    return 0


def measure(kind: str, workers: int) -> dict[str, Any]:
    """The seconds of all, and per stage: of the whole stage, and of its own work."""
    from alignment.recipe.resolved import resolve_recipe
    from alignment.workspace import Workspace
    from flows.services import servers

    with tempfile.TemporaryDirectory(prefix="orchestration-") as folder:
        space = Workspace(Path(folder) / "workspace")
        servers.quiet_environment(space)
        path = write_recipe(Path(folder))
        resolved = resolve_recipe(path)
        recipe, data = resolved.recipe, resolved.data
        if kind == "bare":
            return bare(recipe, data, space)
        if kind == "prefect":
            return under_prefect(resolved, space)
        began = time.perf_counter()
        resolved = resolved.model_copy(update={"recipe": on_ray(recipe, workers)})
        start = time.perf_counter() - began
        return {"start": start} | under_prefect(resolved, space)


def write_recipe(folder: Path) -> Path:
    """The tests' tiny recipe over its tiny model, without evaluation and gate."""
    from tests.conftest import RECIPE, RUBRIC, demonstration_rows, prompt_rows, write_model

    recipe = json.loads(json.dumps(RECIPE))
    recipe["model"]["base"] = str(write_model(folder / "model"))
    recipe["stages"] = {name: recipe["stages"][name] for name in STAGES}
    del recipe["gate"]
    for name, rows in (("prompts", prompt_rows()), ("demonstrations", demonstration_rows())):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "rubric.yaml").write_text(RUBRIC, "utf-8")
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(recipe), "utf-8")
    return path


def on_ray(recipe: Any, workers: int) -> Any:
    """The recipe with its training on a Ray of this machine, started here."""
    from flows import cluster

    resources = recipe.resources.model_copy(update={"workers": workers, "address": "local"})
    recipe = recipe.model_copy(update={"resources": resources})
    cluster.start(recipe, workers)
    return recipe


def bare(recipe: Any, data: Any, space: Any) -> dict[str, Any]:
    """The stages one after another, by calls of functions."""
    from alignment.models.base_model import prepare_base
    from alignment.records import Artifact
    from flows.pipeline.stage_task import execute, make_job

    began = time.perf_counter()
    made = {"base": prepare_base(space, recipe.model)}
    stages = {}
    for name in STAGES:
        start = time.perf_counter()
        made[name] = Artifact.model_validate(execute(make_job(name, recipe, made, data, space)))
        stages[name] = (time.perf_counter() - start, made[name].work_seconds)
    return {"seconds": time.perf_counter() - began, "stages": stages}


def under_prefect(resolved: Any, space: Any) -> dict[str, Any]:
    """The project's own flow on a server that is running."""
    from prefect.settings import PREFECT_API_URL, PREFECT_RESULTS_LOCAL_STORAGE_PATH, temporary_settings

    from flows.pipeline.pipeline import pipeline
    from flows.pipeline.run_state import RunRequest
    from flows.services import servers

    server = servers.begin(space, "prefect")
    servers.wait(space, server)
    try:
        settings = {
            PREFECT_API_URL: f"{server.url}/api",
            PREFECT_RESULTS_LOCAL_STORAGE_PATH: space.folder("prefect", "results"),
        }
        began = time.perf_counter()
        with temporary_settings(settings):
            pipeline(RunRequest(resolved=resolved, workspace=space.root, run="tiny-1"), return_state=True)
        seconds = time.perf_counter() - began
    finally:
        servers.stop(space, "prefect")
    report = json.loads((space.root / "runs" / "tiny-1" / "report.json").read_text("utf-8"))
    rows = {row["name"]: (row["seconds"], row["work_seconds"]) for row in report["stages"] if row["name"] in STAGES}
    return {"seconds": seconds, "stages": rows}


def show(found: dict[str, Any]) -> None:
    """A line for each kind, and what Ray adds to a stage."""
    print(f"{'':<10}{'all':>8}{'work':>8}{'around':>8}   " + "".join(f"{name:>13}" for name in STAGES))
    for kind, figures in found.items():
        stages = figures["stages"]
        work = sum(own for _all, own in stages.values())
        cells = "".join(f"{stages[name][0]:>13.1f}" for name in STAGES)
        print(f"{kind:<10}{figures['seconds']:>8.1f}{work:>8.1f}{figures['seconds'] - work:>8.1f}   {cells}")
    added = {
        name: found["ray"]["stages"][name][0] - found["prefect"]["stages"][name][0]
        for name in ON_RAY
        if name in found["ray"]["stages"]
    }
    print(f"starting Ray: {found['ray']['start']:.1f} s, once a run")
    words = ", ".join(f"{name} {seconds:+.1f}" for name, seconds in added.items())
    print(f"seconds that Ray adds to each stage on it: {words}")
    later = [seconds for name, seconds in added.items() if name not in FIRST]
    print(f"ray, later stages: {sum(later) / len(later):+.1f} s each")


if __name__ == "__main__":
    raise SystemExit(main())
