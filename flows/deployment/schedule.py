"""When a recipe runs by itself, in Prefect's words: its schedule, what triggers it, and what is wrong with either."""

from datetime import timedelta

from prefect.events import DeploymentEventTrigger
from prefect.schedules import Cron, Interval, Schedule

from alignment.recipe.deployment import Deployment
from alignment.recipe.recipe import Recipe
from flows.pipeline.announce import CHAMPION, REFUSED


def schedule_of(settings: Deployment) -> Schedule | None:
    """The schedule, where there is one."""
    if settings.every is not None:
        return Interval(timedelta(seconds=settings.every), timezone=settings.timezone)
    return Cron(settings.cron, timezone=settings.timezone) if settings.cron is not None else None


def triggers(recipe: Recipe) -> list[DeploymentEventTrigger]:
    """The events that start a run: ready votes with their queue and digest, a new champion, another gate's refusal."""
    settings = recipe.deployment
    found = [_votes_are_ready(recipe)]
    for model in settings.after_champion:
        # What a recipe promotes itself starts it no further time: it would never stop.
        match = {"prefect.resource.id": f"rlhf.models.{model}", "rlhf.recipe": f"!{recipe.name}"}
        found.append(_trigger(f"{recipe.name}: {model} has a new champion", CHAMPION, match))
    for other in settings.after_refusal:
        match = {"prefect.resource.id": f"rlhf.recipes.{other}"}
        found.append(_trigger(f"{recipe.name}: the gate of {other} refused", REFUSED, match))
    return found


def _votes_are_ready(recipe: Recipe) -> DeploymentEventTrigger:
    from flows.pipeline.human_votes import (
        queue_prefix,
    )  # these two bring the store, which a run without raters does not need
    from preference_ui.snapshots.collections import EVENT

    def said(name: str) -> dict[str, str]:
        return {"__prefect_kind": "jinja", "template": f"{{{{ event.payload.{name} }}}}"}

    match = {"prefect.resource.id": f"rlhf.preferences.{queue_prefix(recipe)}*"}
    ready = _trigger(f"{recipe.name}: the votes are ready", EVENT, match)
    return ready.model_copy(update={"parameters": {"queue": said("queue"), "digest": said("digest")}})


def _trigger(name: str, event: str, match: dict[str, str]) -> DeploymentEventTrigger:
    return DeploymentEventTrigger.model_validate({"name": name, "expect": {event}, "match": match})
