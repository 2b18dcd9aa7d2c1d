"""A deployment's schedule, as the Prefect server that we install understands it."""

import asyncio

import httpx
from prefect import flow
from prefect.runner import Runner
from prefect.server.services.scheduler import schedule_deployments

from alignment.recipe.deployment import Deployment
from flows.deployment.schedule import schedule_of


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
