"""What a run needs of the machine's environment: limits, variables that hold secrets, packages."""

import importlib.util
import os
from datetime import UTC, datetime

from prefect._vendor.croniter.croniter import (  # what Prefect's server reads schedules with
    CroniterBadDateError,
    croniter,
)
from prefect.client.schemas.schedules import CronSchedule
from pydantic import ValidationError

from alignment.errors import Fault
from alignment.recipe.deployment import TRACKERS
from alignment.recipe.recipe import Recipe

YEARS = 9  # the longest wait for a 29 February: from 2096 to 2104


def running_faults(recipe: Recipe) -> list[Fault]:
    """What a recipe says about running by itself that cannot be done here."""
    faults = []
    settings = recipe.deployment
    if settings.cron is not None:
        problem = cron_problem(settings.cron)
        if problem is not None:
            remedy = "write minute, hour, day, month and weekday, as in '0 3 * * *'"
            faults.append(Fault(f"{settings.cron!r} {problem}", remedy, field="deployment.cron"))
    if recipe.name in settings.after_refusal:
        problem = "a recipe that its own refusal starts would never stop"
        faults.append(Fault(problem, "name another recipe", field="deployment.after_refusal"))
    for setting, name in (recipe.notify.variables if recipe.notify else {}).items():
        if not os.environ.get(name):
            problem = f"the environment variable {name} is not set"
            faults.append(Fault(problem, "set it, or leave this notification out", field=f"notify.{setting}"))
    for place, tracker in enumerate(recipe.tracking):
        if importlib.util.find_spec(TRACKERS[tracker]) is None:
            remedy = "pip install 'rlhf-flows[tracking]', or leave it out"
            faults.append(Fault(f"{TRACKERS[tracker]} is not installed", remedy, field=f"tracking.{place}"))
    return faults


def cron_problem(cron: str) -> str | None:
    """What is wrong with a cron schedule; None where it has five fields and a time that comes.

    Prefect itself takes more: a sixth field for seconds, a seventh for years, days that no month has.
    """
    fields = cron.split()
    if len(fields) != 5 and not cron.strip().startswith("@"):
        return f"is no cron schedule: it has {len(fields)} fields, and five are wanted"
    try:
        CronSchedule(cron=cron)
    except ValidationError:
        return "is no cron schedule"
    try:
        times = croniter(cron, datetime.now(UTC), max_years_between_matches=YEARS)  # type: ignore[no-untyped-call]
        times.get_next()  # type: ignore[no-untyped-call]
    except CroniterBadDateError:
        return f"names no time that comes within {YEARS} years"
    return None
