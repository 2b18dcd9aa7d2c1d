"""When a recipe runs by itself, in Prefect's words: its schedule, what triggers it, and what is wrong with either."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from prefect._vendor.croniter.croniter import croniter  # what Prefect's server reads schedules with
from prefect.client.orchestration import get_client
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Cron, Interval, Schedule

from alignment.recipe.deployment import Deployment
from alignment.recipe.recipe import Recipe
from flows.pipeline.announce import CHAMPION, REFUSED


def schedule_of(settings: Deployment) -> Schedule | None:
    """The schedule, where there is one."""
    if settings.every is not None:
        return Interval(timedelta(seconds=settings.every), timezone=settings.timezone)
    return Cron(settings.cron, timezone=settings.timezone) if settings.cron is not None else None


def missed_since(name: str) -> datetime | None:
    """When a deployment was last asked for work, if its schedule on the server has had a time since; else None."""
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(name)
        except ObjectNotFound:
            return None
    last = deployment.last_polled
    if last is None:
        return None
    now = datetime.now(UTC)
    return last if any(next_time(one.schedule, last) <= now for one in deployment.schedules) else None


def next_time(schedule: Any, after: datetime) -> datetime:
    """The first time of a schedule, as the server has it, after a moment."""
    if isinstance(schedule, IntervalSchedule):
        anchor, seconds = schedule.anchor_date.timestamp(), schedule.interval.total_seconds()
        passed = (after.timestamp() - anchor) // seconds
        return datetime.fromtimestamp(anchor + (passed + 1) * seconds, UTC)
    if isinstance(schedule, CronSchedule):
        local = after.astimezone(ZoneInfo(schedule.timezone or "UTC"))
        found: datetime = croniter(schedule.cron, local).get_next(datetime)  # type: ignore[no-untyped-call]
        return found
    return datetime.max.replace(tzinfo=UTC)  # of another kind: none of ours


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
