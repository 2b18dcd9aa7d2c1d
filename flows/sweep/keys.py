"""Which stages variants have in common, known before anything is made."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from alignment.digests import digest_of
from alignment.recipe.base import BASE, CHAMPION, MADE_BASE
from alignment.recipe.graph import seen_by, stage_inputs
from alignment.recipe.recipe import Recipe
from alignment.recipe.resolved import ResolvedRecipe
from alignment.records import Artifact
from alignment.workspace import Workspace
from flows.pipeline.stage_task import Job, make_job, sources_of


def planned_jobs(resolved: ResolvedRecipe, workspace: Workspace) -> dict[str, Job]:
    """The job of every stage, whose inputs have their makers' keys for digests.

    Two stages with the same key are then made of the same settings, data and code all the way up, so that one artifact
    answers both. What people vote, and who is champion, counts as the same.
    """
    recipe, made = resolved.recipe, {CHAMPION: _planned(CHAMPION, CHAMPION)}
    if recipe.model.base != MADE_BASE:
        made[BASE] = _planned(BASE, digest_of([recipe.model.base, recipe.model.revision]))
    jobs: dict[str, Job] = {}
    for name in recipe.stages:
        jobs[name] = make_job(name, recipe, seen_by(name, recipe.stages, made), resolved.data, workspace)
        made[name] = _planned(name, jobs[name].key)
    return jobs


def planned_keys(resolved: ResolvedRecipe, workspace: Workspace) -> dict[str, str]:
    """The key of every stage as :func:`planned_jobs` has it, and a digest of the base model."""
    jobs = planned_jobs(resolved, workspace)
    model = resolved.recipe.model
    return {BASE: digest_of([model.base, model.revision])} | {name: job.key for name, job in jobs.items()}


def measuring_key(job: Job) -> str:
    """The key of an evaluation whatever its candidate and its inputs are: of how it measures, and on which prompts."""
    settings = job.settings.model_copy(update={"model": BASE})
    recipe = job.recipe.model_copy(update={"stages": {**job.recipe.stages, job.name: settings}})
    return replace(job, recipe=recipe, inputs={}).key


def varied_stages(keys: Iterable[Mapping[str, str]]) -> set[str]:
    """The stages (or ``base``) that do not have the same key in all variants."""
    tables = list(keys)
    names = {name for table in tables for name in table}
    return {name for name in names if len({table.get(name) for table in tables}) > 1}


def needed_for(recipe: Recipe, wanted: Collection[str]) -> set[str]:
    """The stages that have to be there for ``wanted`` to be made, those among them."""
    found, waiting = set[str](), list(wanted)
    while waiting:
        name = waiting.pop()
        if name in found or name not in recipe.stages:
            continue
        found.add(name)
        settings = recipe.stages[name]
        waiting += [source for named in stage_inputs(settings).values() for source in named]
        if BASE in sources_of(recipe, settings):
            waiting += [other for other, stage in recipe.stages.items() if stage.makes_base()]
    return found


def _planned(name: str, digest: str) -> Artifact:
    """An artifact that is not there yet."""
    return Artifact(name=name, kind="planned", version=1, digest=digest, path="", key=digest)
