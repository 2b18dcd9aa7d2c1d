"""When a recipe runs by itself, in Prefect's words: its schedule, what triggers it, and what is wrong with either."""

import os
from datetime import timedelta

from prefect.client.schemas.schedules import CronSchedule
from prefect.events import DeploymentEventTrigger
from prefect.schedules import Cron, Interval, Schedule
from pydantic import ValidationError

from alignment.faults import Fault
from alignment.recipe import Deployment, Recipe

CHAMPION, REFUSED = "champion.promoted", "gate.refused"  # events; preference_ui.collecting has the third


def running_faults(recipe: Recipe) -> list[Fault]:
    """What a recipe says about running by itself that cannot be done here."""
    faults = []
    settings = recipe.deployment
    if settings.cron is not None:
        try:
            CronSchedule(cron=settings.cron)
        except ValidationError:
            remedy = "write minute, hour, day, month and weekday, as in '0 3 * * *'"
            faults.append(Fault(f"{settings.cron!r} is no cron schedule", remedy, field="deployment.cron"))
    if recipe.name in settings.after_refusal:
        problem = "a recipe that its own refusal starts would never stop"
        faults.append(Fault(problem, "name another recipe", field="deployment.after_refusal"))
    for setting, name in (recipe.notify.variables if recipe.notify else {}).items():
        if not os.environ.get(name):
            problem = f"the environment variable {name} is not set"
            faults.append(Fault(problem, "set it, or leave this notification out", field=f"notify.{setting}"))
    return faults


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
    from flows.collect import queue_prefix  # these two bring the store, which a run without raters does not need
    from preference_ui.collecting import EVENT

    def said(name: str) -> dict[str, str]:
        return {"__prefect_kind": "jinja", "template": f"{{{{ event.payload.{name} }}}}"}

    match = {"prefect.resource.id": f"rlhf.preferences.{queue_prefix(recipe)}*"}
    ready = _trigger(f"{recipe.name}: the votes are ready", EVENT, match)
    return ready.model_copy(update={"parameters": {"queue": said("queue"), "digest": said("digest")}})


def _trigger(name: str, event: str, match: dict[str, str]) -> DeploymentEventTrigger:
    return DeploymentEventTrigger.model_validate({"name": name, "expect": {event}, "match": match})
