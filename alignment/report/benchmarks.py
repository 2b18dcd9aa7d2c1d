"""What a benchmark found, as the report shows it: a table for each task."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment.recipe.graph import of_type
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.experiments.benchmark import BenchmarkStage
from alignment.recipe.stages.prompting import PromptForm
from alignment.records import Artifact
from alignment.report.run_report import BenchmarkReport, BenchmarkRow, BenchmarkTask, Interval, PromptTurn


def benchmarks(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> tuple[BenchmarkReport, ...]:
    """Every benchmark of a run that was asked."""
    found = []
    for name, stage in of_type(recipe.stages, BenchmarkStage):
        if name in artifacts:
            told = json.loads((Path(artifacts[name].path) / "benchmark.json").read_text("utf-8"))
            tasks = tuple(_task(task, told, stage) for task in told["questions"])
            found.append(BenchmarkReport(stage=name, tasks=tasks))
    return tuple(found)


def _task(task: str, told: Mapping[str, Any], stage: BenchmarkStage) -> BenchmarkTask:
    cells = [cell for cell in told["cells"] if cell["task"] == task]
    best = {one["model"]: one for one in told["best"] if one["task"] == task}
    differences = {
        (one["where"], frozenset((one["left"], one["right"]))): one
        for one in told["form_differences"]
        if one["task"] == task
    }

    def row(cell: Mapping[str, Any]) -> BenchmarkRow:
        leader = best[cell["model"]]["form"]
        compared = differences.get((cell["model"], frozenset((leader, cell["form"]))))
        return BenchmarkRow(
            model=cell["model"], form=cell["form"], described=described(stage.forms[cell["form"]]),
            right=_interval(cell["right"]), behind=_behind(compared, leader) if compared else None,
            best=leader == cell["form"] and len(stage.forms) > 1, unread=cell["unread"],
            prompt_tokens=cell["prompt_tokens"], answer_tokens=cell["answer_tokens"],
        )  # fmt: skip

    prompts = {
        form: tuple(PromptTurn(role=turn["role"], content=turn["content"]) for turn in prompt["messages"])
        for form in stage.forms
        for prompt in [told["examples"][f"{task}/{form}"]]
    }
    said = " ".join(_said(best[model]) for model in stage.models) if len(stage.forms) > 1 else ""
    return BenchmarkTask(
        name=task, questions=told["questions"][task], said=said, rows=tuple(map(row, cells)), prompts=prompts
    )


def _behind(compared: Mapping[str, Any], leader: str) -> Interval:
    """How many points a form is behind the leader, whichever side it was counted on."""
    one = compared["difference"]
    if compared["left"] == leader:
        return Interval(value=one["value"], low=one["low"], high=one["high"])
    return Interval(value=-one["value"], low=-one["high"], high=-one["low"])


def _said(best: Mapping[str, Any]) -> str:
    """Which form did best, and which others the questions cannot tell from it."""
    model, form = best["model"], best["form"].replace("_", " ")
    alike = [name.replace("_", " ") for name in best["alike"]]
    if not alike:
        return f"For {model}, {form} is better than every other form."
    return f"For {model}, {form} had most right; not told apart from it: {', '.join(alike)}."


def described(form: PromptForm) -> str:
    """A form in words."""
    shown = {"fixed": "the same", "random": "drawn", "nearest": "nearest"}[form.choose]
    parts = [f"{form.shots} examples, {shown}" if form.shots else "no examples"]
    parts += ["reasoning first"] if form.reasoning else []
    parts += [f"the commonest of {form.votes}"] if form.votes > 1 else []
    return ", ".join(parts)


def _interval(told: Mapping[str, Any]) -> Interval:
    return Interval(value=told["value"], low=told["low"], high=told["high"])
