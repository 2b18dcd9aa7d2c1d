"""A deployment's schedule, as the Prefect server that we install understands it."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import flow
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.runner import Runner
from prefect.server.services.scheduler import schedule_deployments

from alignment.recipe.deployment import Deployment
from alignment.recipe.resolved import resolve_recipe
from flows.deployment.schedule import next_time, schedule_of
from flows.deployment.serve import register_deployment


@flow
def scheduled() -> None:
    """Nothing: it is planned here, and not run."""


def test_the_server_plans_runs(prefect_server: str) -> None:
    """The server's own service plans them. With SQLAlchemy 2.1 it failed at that, and no schedule ever fired."""
    schedule = schedule_of(Deployment(every=3600))
    assert schedule is not None
    identity = Runner(name="scheduled").add_flow(scheduled, name="hourly", schedules=[schedule])
    asyncio.run(schedule_deployments())
    body = {"deployments": {"id": {"any_": [str(identity)]}}, "sort": "EXPECTED_START_TIME_ASC"}
    found = httpx.post(f"{prefect_server}/flow_runs/filter", json=body, timeout=60).raise_for_status().json()
    assert len(found) >= 3
    assert all(run["auto_scheduled"] and run["state_type"] == "SCHEDULED" for run in found)


def due(server: str, deployment: str) -> list[dict[str, Any]]:
    """The runs that a worker of the deployment would be given now, as Prefect's runner asks for them."""
    body = {"deployment_ids": [deployment], "scheduled_before": datetime.now(UTC).isoformat(), "limit": 50}
    reply = httpx.post(f"{server}/deployments/get_scheduled_flow_runs", json=body, timeout=60).raise_for_status()
    found: list[dict[str, Any]] = reply.json()
    return found


@pytest.mark.slow
def test_a_worker_that_was_away_makes_up_for_it_once_with_the_recipe_of_now(
    prefect_server: str, make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """The server plans runs while nobody asks for them: several are late, all with the parameters of then."""
    settings = Deployment(every=6.0)
    path = make_recipe(tmp_path, stages=("sft",), changes={"name": "often"})
    recipe = resolve_recipe(path).recipe
    old = {"recipe": str(path), "workspace": "/then", "overrides": ["stages.sft.epochs=1"]}
    new = {"recipe": str(path), "workspace": "/now", "overrides": []}

    def serve(parameters: dict[str, Any], times: Deployment = settings) -> str:
        return str(register_deployment(Runner(name="often"), recipe, times, parameters))

    first = serve(old)
    assert due(prefect_server, first) == [], "a new deployment has missed nothing"
    asyncio.run(schedule_deployments())
    time.sleep(20)
    late = due(prefect_server, first)  # as a worker would see them that is only busy
    assert len(late) >= 3
    assert all(run["parameters"]["workspace"] == "/then" for run in late)
    time.sleep(8)
    again = serve(new)
    assert again == first
    [made_up] = due(prefect_server, again)
    assert {name: made_up["parameters"][name] for name in new} == new
    assert serve(new) == first  # another worker, or the same at once: a moment ago somebody asked
    assert [run["id"] for run in due(prefect_server, again)] == [made_up["id"]]
    time.sleep(8)
    serve(new, Deployment())  # without a schedule nothing is made up for
    assert [run["id"] for run in due(prefect_server, again)] == [made_up["id"]]


def every_minute(anchor: str) -> IntervalSchedule:
    return IntervalSchedule.model_validate({"interval": 60, "anchor_date": anchor})


@pytest.mark.parametrize(
    ("schedule", "after", "expected"),
    [
        (CronSchedule(cron="0 3 * * *", timezone="Europe/Berlin"), "2026-01-10T01:59:00Z", "2026-01-10T02:00:00Z"),
        (CronSchedule(cron="0 3 * * *", timezone="Europe/Berlin"), "2026-01-10T02:00:00Z", "2026-01-11T02:00:00Z"),
        (CronSchedule(cron="0 3 * * *", timezone="Europe/Berlin"), "2026-07-10T00:59:00Z", "2026-07-10T01:00:00Z"),
        (CronSchedule(cron="*/10 * * * *"), "2026-07-10T00:59:00Z", "2026-07-10T01:00:00Z"),
        (every_minute("2026-01-01T00:00:30Z"), "2026-01-02T00:00:10Z", "2026-01-02T00:00:30Z"),
        (every_minute("2026-01-01T00:00:30Z"), "2026-01-02T00:00:30Z", "2026-01-02T00:01:30Z"),
        (every_minute("2027-01-01T00:00:30Z"), "2026-01-02T00:00:31Z", "2026-01-02T00:01:30Z"),
    ],
)  # fmt: skip
def test_the_first_time_after_a_moment(schedule: Any, after: str, expected: str) -> None:
    """Counted by hand; Berlin is an hour ahead of UTC in January, two in July."""
    assert next_time(schedule, datetime.fromisoformat(after)) == datetime.fromisoformat(expected)
