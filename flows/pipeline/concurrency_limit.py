"""GPUs, or whatever else is scarce, as slots of a Prefect concurrency limit: a stage works while it holds its share.

The limit is strict: without it no stage starts. A holder's lease is renewed while it lives; one that dies gives its
slots back when the lease ends, a minute later, and one that is cancelled gives them back at once.
"""

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.responses import ConcurrencyLimitWithLeaseResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from alignment.errors import Fault, StageError
from alignment.recipe.graph import workers_of
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.spec import StageSettings
from flows.monitoring.background import server_answers
from flows.monitoring.progress import listener

LEASE_SECONDS = 60.0  # the least that Prefect's server takes
RENEW_SECONDS = LEASE_SECONDS / 2
AWAY_SECONDS = 2.0  # between two tries while the server is away: soon enough to renew before it ends an old lease
FULL_SECONDS = 5.0  # between two tries while others hold them
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

    A server that goes away while they are held does not end the stage: it would keep nobody else from the GPUs. When
    it is back they are held on, or taken again.
    """
    limit, wanted = recipe.resources.limit, wanted_slots(recipe, settings)
    if limit is None or not wanted:
        yield
        return
    _wait_for_the_server(limit)
    held = HeldSlots(limit, wanted, listener.get().warned)
    held.take()
    try:
        yield
    finally:
        held.give_back()


class HeldSlots:
    """Slots under a lease that a thread renews, and replaces where the server has ended it meanwhile.

    Prefect's own context manager gives up after three tries, in some seconds, and holds nothing from then on.
    """

    def __init__(self, limit: str, wanted: int, say: Callable[[str], None]) -> None:
        self.limit, self.wanted, self.say = limit, wanted, say
        self._lease: UUID | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Waits until they are free, and takes them. Raises StageError where the server has no such limit."""
        said = False
        with get_client(sync_client=True) as client:
            while not self._try(client):
                if not said:
                    self._check_size(client)
                    self.say(f"waiting for {self.wanted} slots of {self.limit}")
                said = True
                time.sleep(FULL_SECONDS)
        context = contextvars.copy_context()  # which server this is, Prefect keeps in it
        self._thread = threading.Thread(target=context.run, args=(self._hold,), name=f"holds-{self.limit}", daemon=True)
        self._thread.start()

    def give_back(self) -> None:
        """Gives them back; where the server is away, they are free when the lease ends."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        if self._lease is None:
            return
        try:
            with get_client(sync_client=True) as client:
                client.release_concurrency_slots_with_lease(self._lease)
        except (httpx.HTTPError, ObjectNotFound) as error:
            _log.warning("the slots of %s are given back in %g s: %s", self.limit, LEASE_SECONDS, error)

    def _try(self, client: SyncPrefectClient) -> bool:
        """Takes them where they are free."""
        try:
            reply = client.increment_concurrency_slots_with_lease(
                [self.limit], self.wanted, mode="concurrency", lease_duration=LEASE_SECONDS
            )
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.LOCKED:
                return False
            if error.response.status_code >= 500:
                raise
            raise self._refused(error.response.text[:200]) from error
        granted = ConcurrencyLimitWithLeaseResponse.model_validate(reply.json())
        if not granted.limits:
            raise self._refused("the server has no such limit")
        self._lease = granted.lease_id
        return True

    def _check_size(self, client: SyncPrefectClient) -> None:
        """Raises StageError where the limit has fewer slots than are wanted: they would be waited for without end."""
        there = client.read_global_concurrency_limit_by_name(self.limit)
        if there.limit < self.wanted:
            raise self._refused(f"it has {there.limit}")

    def _refused(self, why: str) -> StageError:
        problem = f"{self.wanted} slots of {self.limit} cannot be had: {why}"
        return StageError(f"{problem}; `rlhf deploy RECIPE --limit {self.limit}=N` makes the limit")

    def _hold(self) -> None:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):  # Prefect's own tries wait for up to half a minute
            self._hold_on()

    def _hold_on(self) -> None:
        pause = RENEW_SECONDS
        while not self._ended.wait(pause):
            try:
                with get_client(sync_client=True) as client:
                    pause = RENEW_SECONDS if self._renew(client) else FULL_SECONDS
            except httpx.HTTPError:  # it is away: whoever watches the run says so
                pause = AWAY_SECONDS
            except StageError as error:
                _log.warning("%s", error)
                return

    def _renew(self, client: SyncPrefectClient) -> bool:
        """Renews the lease, or takes the slots again where it has ended. Says whether they are held."""
        if self._lease is not None:
            try:
                client.renew_concurrency_lease(self._lease, LEASE_SECONDS)
                return True
            except ObjectNotFound:
                pass
            except httpx.HTTPStatusError as error:
                if error.response.status_code not in (httpx.codes.NOT_FOUND, httpx.codes.GONE):
                    raise
            self._lease = None
            _log.warning("the server gave %d slots of %s away; they are taken again", self.wanted, self.limit)
        return self._try(client)


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
