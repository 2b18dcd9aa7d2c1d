"""What a run needs of the machine's environment: limits, variables that hold secrets."""

import os

from prefect.client.schemas.schedules import CronSchedule
from pydantic import ValidationError

from alignment.errors import Fault
from alignment.recipe.recipe import Recipe


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
