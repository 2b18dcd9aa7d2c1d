"""The process that serves a deployment: it asks Prefect's server for work, and answers for what it started.

Prefect's runner does the work of starting runs and of heeding cancels. What is ours is how it ends. SIGTERM and Ctrl-C
are passed on to the runs at once, which have :data:`GRACE_SECONDS` to write a checkpoint, the deployment is paused, for
nobody does its work any more, and the process is gone before the thirty seconds are over that Kubernetes and systemd's
stop jobs usually give. A run notices the death of its worker, whatever it died of, and ends as well.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.runner import Runner

from flows.pipeline.orchestration import of_the_server
from flows.services.http_client import UnreachableError, ask, prefect_headers
from flows.services.process_records import ProcessIdentity
from flows.services.process_registration import ProcessRegistration
from flows.services.server_outbox import settle
from flows.shutdown import PATIENT, TERMINATED, TOTAL_SECONDS

_log = logging.getLogger(__name__)
GRACE_SECONDS = TOTAL_SECONDS - 2.0  # for the runs; then they are killed, and this process is gone before 30
SETTLE_SECONDS = 10.0  # between two looks at what is to be said of processes that were killed


class DeploymentWorker(Runner):
    """A runner that outlives its server's absences, and that ends with its runs and in time."""

    registration: ProcessRegistration
    root: Path
    api: str
    deployment: str

    async def start(self, run_once: bool = False, webserver: bool | None = None) -> None:
        """Serves until the process is told to end."""
        del run_once, webserver  # Prefect's names
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_end)
        threading.Thread(target=self._settle, name="settles", daemon=True).start()
        async with self, self._loops_task_group:
            self._loops_task_group.start_soon(self._poll)

    async def _poll(self) -> None:
        """Asks for work for ever: Prefect's own loop gives up after three answers that did not come."""
        away = False
        while True:
            try:
                await self._get_and_submit_flow_runs()  # type: ignore[no-untyped-call]
                away = False
            except (httpx.HTTPError, RuntimeError) as error:
                if not of_the_server(error) and not isinstance(error, RuntimeError):
                    raise
                if not away:
                    _log.warning("the Prefect server at %s does not answer: %s; asked again", self.api, error)
                away = True
            await anyio.sleep(self.query_seconds)

    def _settle(self) -> None:
        while True:
            time.sleep(SETTLE_SECONDS)
            with contextlib.suppress(OSError):
                settle(self.root)

    def _told_to_end(self, _number: int, _frame: Any = None) -> None:
        if threading.current_thread() is threading.main_thread() and not self.stopping:
            self.stopping = True
            threading.Thread(target=self._end, name="ends", daemon=True).start()

    def _end(self) -> None:
        """Ends the runs, pauses the deployment, and ends the process. The event loop waits for a run, and is left."""
        deadline = time.monotonic() + GRACE_SECONDS
        started = [ProcessIdentity.of(child.pid or 0) for child in multiprocessing.active_children()]
        runs = [one for one in started if one is not None]
        for number in (PATIENT, signal.SIGTERM):
            _send(runs, number)
        pause(self.api, self.deployment)
        _wait(runs, deadline)
        _send(runs, signal.SIGKILL)
        _wait(runs, time.monotonic() + 1.0)
        with contextlib.suppress(OSError):
            settle(self.root)
            self.registration.path.unlink(missing_ok=True)
        os._exit(TERMINATED)


def _send(processes: list[ProcessIdentity], number: signal.Signals) -> None:
    for one in processes:
        if not one.is_gone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, number)


def _wait(processes: list[ProcessIdentity], deadline: float) -> None:
    while not all(one.is_gone for one in processes) and time.monotonic() < deadline:
        time.sleep(0.1)


def pause(api: str, deployment: str, *, paused: bool = True) -> None:
    """Pauses a deployment's schedule: its runs would only pile up while nobody serves it."""
    try:
        place = f"{api}/deployments/{deployment}"
        ask(place, method="PATCH", body={"paused": paused}, headers=prefect_headers(), timeout=3.0)
    except UnreachableError as error:
        _log.warning("the deployment's schedule stays active: the Prefect server does not answer: %s", error)


def replace_missed(deployment: Any, parameters: dict[str, Any], since: datetime | None) -> None:
    """Clears what was planned while nobody served the deployment, or with the parameters of an earlier recipe.

    What a schedule missed ``since`` is made up for by one run (None: it missed nothing), and what an event asked for is
    done, both with what the recipe says now. What a person started by hand stays as it is.
    """
    of_it = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    planned = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])))
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(deployment_filter=of_it, flow_run_filter=planned, limit=200):
            by_an_event = run.created_by is not None and run.created_by.type == "AUTOMATION"
            if by_an_event:
                event = {name: run.parameters.get(name, "") for name in ("queue", "digest")}
                client.create_flow_run_from_deployment(deployment, parameters={**parameters, **event})
            if by_an_event or run.auto_scheduled:
                client.delete_flow_run(run.id)
        if since is not None:
            key = f"missed since {since.isoformat()}"  # of two workers that begin, one makes up for it
            client.create_flow_run_from_deployment(deployment, parameters=parameters, idempotency_key=key)


def end_with_the_worker(worker: int) -> None:
    """From now on this process ends, as SIGTERM says it, when the process ``worker`` has ended."""
    threading.Thread(target=_watch, args=(worker,), name="watches-the-worker", daemon=True).start()


def _watch(worker: int) -> None:
    while os.getppid() == worker:
        time.sleep(0.5)
    os.kill(os.getpid(), PATIENT)
    os.kill(os.getpid(), signal.SIGTERM)
