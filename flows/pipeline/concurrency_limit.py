"""GPUs, or whatever else is scarce, as slots of a Prefect concurrency limit: a stage works while it holds its share.

The limit is strict: without it no stage starts. A holder's lease is renewed while it lives; one that dies gives its
slots back when the lease ends, a minute later, and one that is cancelled gives them back at once.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx
from prefect.client.orchestration import get_client
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from alignment.errors import Fault, StageError
from alignment.recipe.graph import workers_of
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.spec import StageSettings
from flows.monitoring.background import server_answers
from flows.monitoring.progress import listener

LEASE_SECONDS = 60.0  # the least that Prefect's server takes
SERVER_SECONDS = 120.0  # for a server that is away when a stage wants its slots
_log = logging.getLogger(__name__)


def wanted_slots(recipe: Recipe, settings: StageSettings) -> int:
    """How many slots a stage holds while it works: what the recipe says, or the GPUs of its workers."""
    resources = recipe.resources
    if resources.limit is None or not settings.spec.computes:
        return 0
    if resources.slots is not None:
        return resources.slots
    from alignment.models.device import pick_device

    if pick_device(resources).type != "cuda" and resources.address is None:
        return 0
    each = 1 if resources.gpus_per_worker is None else resources.gpus_per_worker
    return round(workers_of(resources, settings) * each) or int(each > 0)


@contextmanager
def slots(recipe: Recipe, settings: StageSettings) -> Iterator[None]:
    """Waits for the stage's slots and holds them. Raises StageError where the limit is not on the server.

    A server that goes away while they are held does not end the stage: it would keep nobody else from the GPUs.
    """
    limit, wanted = recipe.resources.limit, wanted_slots(recipe, settings)
    if limit is None or not wanted:
        yield
        return
    _wait_for_the_server(limit)
    held = concurrency(
        limit, occupy=wanted, lease_duration=LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False
    )
    try:
        held.__enter__()
    except ConcurrencySlotAcquisitionError as error:
        problem = f"{wanted} slots of {limit} cannot be had: {error}"
        raise StageError(f"{problem}; `rlhf deploy RECIPE --limit {limit}=N` makes the limit") from error
    try:
        yield
    finally:
        try:
            held.__exit__(None, None, None)
        except httpx.HTTPError as error:
            _log.warning("the slots of %s are given back in %g s: %s", limit, LEASE_SECONDS, error)


def _wait_for_the_server(limit: str) -> None:
    """Without the server nobody knows whose the GPUs are. Raises StageError where it does not come back."""
    deadline = time.monotonic() + SERVER_SECONDS
    if not server_answers():
        listener.get().warned(f"waiting for the Prefect server, which shares out {limit}")
        while not server_answers():
            if time.monotonic() > deadline:
                raise StageError(
                    f"the Prefect server, which shares out {limit}, did not answer in {SERVER_SECONDS:g} s"
                )
            time.sleep(1.0)


def set_limits(limits: Mapping[str, int]) -> None:
    """Makes limits on the server, or changes how many slots they have."""
    with get_client(sync_client=True) as client:
        for name, value in limits.items():
            client.upsert_global_concurrency_limit_by_name(name, value)


def limit_faults(recipe: Recipe) -> list[Fault]:
    """The fault of naming a limit that is not on the server, or that has fewer slots than a stage wants."""
    limit = recipe.resources.limit
    if limit is None:
        return []
    most = max(wanted_slots(recipe, settings) for settings in recipe.stages.values())
    remedy = f"make it with `rlhf deploy RECIPE --limit {limit}=N`"
    with get_client(sync_client=True) as client:
        try:
            there = client.read_global_concurrency_limit_by_name(limit)
        except ObjectNotFound:
            return [Fault(f"the server has no limit {limit}", remedy, field="resources.limit")]
    if there.limit < most:
        return [Fault(f"{limit} has {there.limit} slots, and a stage wants {most}", remedy, field="resources.limit")]
    return []
