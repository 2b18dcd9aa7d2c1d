"""Prefect runs the pipeline and shows it. What it cannot do while its server is away, a run does without it.

Flows and tasks ask the server at their borders: when one begins, and when it ends. A server that is away there raises
errors of its HTTP client out of Prefect's engine; the work itself is not concerned. A task is then called as a plain
function, and how a flow ended is put into the outbox (:mod:`flows.services.server_outbox`), from which the server hears
of it when it is back.
"""

import asyncio
import json
import logging
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import httpx
from prefect import Flow, get_client
from prefect._internal.concurrency.services import _active_services
from prefect.client.schemas.objects import State, StateDetails, StateType
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.context import FlowRunContext, TagsContext
from prefect.flow_engine import run_flow as call_flow
from prefect.logging import handlers
from prefect.runtime import flow_run as running
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings
from prefect.states import Completed, Failed, Pending
from prefect.utilities.annotations import quote

from flows.monitoring.background import server_writes
from flows.services.http_client import UnreachableError, ask, prefect_headers
from flows.services.process_registration import making_run
from flows.services.server_outbox import ServerRequest, post, state_message

_log = logging.getLogger(__name__)
T = TypeVar("T")
SERVICES_SECONDS = 8.0  # for what Prefect sends from the background, at the end of a run
LOOK_SECONDS = 3.0  # between two looks at a run's state on the server
AWAY = "the Prefect server did not answer; the run goes on without it, and the dashboard is told later"


def of_the_server(error: BaseException) -> bool:
    """Whether an error that came out of Prefect's engine is its server's absence, and none of the work.

    Every task asks for the slots of its tags, whether or not there is a limit: there the absence is the error's cause.
    """
    if isinstance(error, ConcurrencySlotAcquisitionError):
        return error.__cause__ is not None and of_the_server(error.__cause__)
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500
    return isinstance(error, httpx.TransportError)


def run_task(
    root: Path,
    task: Callable[..., Any],
    function: Callable[..., Any],
    *given: Any,
    inputs: Iterable[State[Any]] = (),
) -> tuple[State[Any], Any]:
    """Runs ``function`` as a Prefect task, or as it is where the server does not answer. Its errors are raised.

    ``inputs`` are the final states of the tasks that made what it is given: the dashboard draws them. Returns the final
    state, whose name says whether the cache answered, and the value.
    """
    if not server_writes(running.get_id()):
        return _without_the_server(function, *given)
    try:
        # Quoted, or Prefect takes every string in them that it has seen before for another task's result.
        after = [_only_its_task(state) for state in inputs if state.state_details.task_run_id is not None]
        state: State[Any] = task(*map(quote, given), return_state=True, wait_for=after)
    except Exception as error:
        if not of_the_server(error):
            raise
        return _without_the_server(function, *given)  # what it had made is found again
    value = state.result()
    task_run = state.state_details.task_run_id
    if task_run is not None and not server_writes(
        running.get_id()
    ):  # it hears of a task's end by an event, which it has missed
        body = {"state": {"type": "COMPLETED", "name": state.name, "message": state.message}, "force": True}
        post(root, ServerRequest("POST", f"/task_runs/{task_run}/set_state", body, **address(root)))
    return state, value


def _without_the_server(function: Callable[..., Any], *given: Any) -> tuple[State[Any], Any]:
    _log.warning(AWAY)
    result = function(*given)
    state: State[Any] = result if isinstance(result, State) else Completed(data=result)
    return state, state.data


def _only_its_task(state: State[Any]) -> State[Any]:
    """A task's final state without its result, whose parts Prefect would take for results of other tasks."""
    return Completed(data=0, state_details=StateDetails(task_run_id=state.state_details.task_run_id))


def give_up_on_the_server() -> None:
    """Has Prefect's engine not wait for a server that is away at the end of a run: the outbox has what is to be said.

    What Prefect still would send from the background is forgotten, and requests are tried once.
    """
    logging.getLogger("prefect").setLevel(logging.CRITICAL)  # each service would say that it could not send
    _to_the_flows_end.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))
    for service in _under_way():
        _cancel(service)


def end_services(seconds: float = SERVICES_SECONDS) -> None:
    """Lets Prefect send what it still would from the background (logs, events), for so long at most.

    Left to the interpreter's exit, each of its services tries as long as a server that hangs makes it wait. What is
    logged after this (a thread that showed the run says that it could not) would start one anew, so it is not sent.
    """
    handlers.set_api_log_sink(_forget)
    services = _under_way()
    wait([service._drain() for service in services], timeout=seconds)
    for service in services:
        _cancel(service)


def begin_services() -> None:
    """Has Prefect send logs again, after an earlier run of this process ended."""
    if handlers._api_log_sink is _forget:
        handlers.set_api_log_sink(None)


def _forget(_log: dict[str, Any]) -> None:
    """Takes a log that comes after the end."""


def _under_way() -> list[Any]:
    """Prefect's services that are not at their end, those among them that are told to end and still try to send."""
    return [
        service
        for service in list(_active_services)
        if service._started and service._done_event is not None and not service._done_event.is_set()
    ]


def _cancel(service: Any) -> None:
    """Ends a service's task. A service that was told to end no longer knows it, so it is looked for on its loop."""
    loop = service._loop
    for task in asyncio.all_tasks(loop):
        frame = getattr(task.get_coro(), "cr_frame", None)
        if frame is not None and frame.f_code.co_name == "_run" and frame.f_locals.get("self") is service:
            loop.call_soon_threadsafe(task.cancel)


_to_the_flows_end = ExitStack()


class FlowEndings:
    """How the body of each flow run of this process ended, told by the body itself."""

    def __init__(self) -> None:
        self._ended: dict[str, State[Any] | BaseException] = {}
        self._identities: dict[str, str] = {}

    @contextmanager
    def noting(self, run: str) -> Iterator[Callable[[State[Any]], None]]:
        """Around a flow's body: what it is given, or what is raised, is how run ``run`` ended."""
        self._identities[run] = running.get_id() or ""

        def note(state: State[Any]) -> None:
            self._ended[run] = state

        try:
            yield note
        except BaseException as error:
            self._ended[run] = error
            raise

    def take(self, run: str) -> tuple[State[Any] | BaseException | None, str]:
        """How a run ended (None: it never began) and its identity on the server."""
        return self._ended.pop(run, None), self._identities.pop(run, "")


endings = FlowEndings()


def run_flow(begin: Callable[[], State[Any]], body: Callable[[], State[Any]], *, run: str, root: Path) -> State[Any]:
    """Runs a flow to its final state, which is the body's own also where the server is not there to hear of it.

    ``begin`` calls the flow (:func:`begin_flow`); ``body`` is what the flow does, for a server that goes away before it
    could begin.
    """
    try:
        state = begin()
    except BaseException as error:
        ended, identity = endings.take(run)
        if not of_the_server(error):
            raise
        _log.warning(AWAY)
        if ended is None:
            try:
                ended = body()
            except Exception as problem:
                ended = problem
            endings.take(run)
        if isinstance(ended, BaseException) and not isinstance(ended, Exception):
            raise ended from None
        if isinstance(ended, Exception):
            ended = Failed(message=f"{type(ended).__name__}: {ended}", data=ended)
        if identity:
            tell_state(root, identity, ended)
        return ended
    finally:
        _to_the_flows_end.close()
    ended, identity = endings.take(run)
    if not isinstance(ended, State) or not _failed_by_the_server(state):
        return state
    # The engine could not say how the body ended, and took that for a failure of the flow.
    _log.warning(AWAY)
    if identity:
        tell_state(root, identity, ended)
    return ended


def begin_flow(flow: Flow[Any, Any], request: Any) -> State[Any]:
    """Calls a flow, whose run on the server is made here where no other run is its parent.

    Prefect's engine makes it as well, but this process could answer for it only once the flow is at work: one that is
    killed before, within a second, left a run that stays pending for ever. So does one that ends while the server makes
    the run and before it says under which id: this process answers for its name first, until the run has its own.
    """
    if FlowRunContext.get() is not None:
        return cast("State[Any]", flow(request, return_state=True))
    parameters, name = {"request": request}, f"starting-{uuid.uuid4().hex}"
    with making_run(name) as made:
        with get_client(sync_client=True) as client:
            flow_run = client.create_flow_run(
                flow,
                name=name,
                parameters=flow.serialize_parameters(parameters),
                state=Pending(),
                tags=TagsContext.get().current_tags,
            )
        made(str(flow_run.id))
        return cast("State[Any]", call_flow(flow, flow_run, parameters, return_type="state"))


def _failed_by_the_server(state: State[Any]) -> bool:
    if not (state.is_failed() or state.is_crashed()):
        return False
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and of_the_server(error)


def tell_state(root: Path, flow_run: str, state: State[Any]) -> None:
    """Has the server told how a flow run ended, now or when it is back."""
    kind = StateType(state.type).value
    name = state.name or kind.title()
    post(root, state_message(flow_run, kind, name, state.message or "", force=True, **address(root)))


def address(root: Path) -> dict[str, Any]:
    """The server that this process uses, as messages name it."""
    api = str(get_current_settings().api.url or "")
    try:
        noted = json.loads((root / "services" / "prefect.json").read_text("utf-8"))["url"]
    except (OSError, ValueError, KeyError):
        noted = ""
    return {"api": api, "ours": bool(noted) and api == f"{noted}/api"}


class CancelWatch:
    """Looks at a run's state on the server now and then: a cancel there ends the run here; an absence is said once."""

    def __init__(self, root: Path, flow_run: str, cancel: Callable[[], None], say: Callable[[str], None]) -> None:
        self.root, self.flow_run, self.cancel, self.say = root, flow_run, cancel, say
        self.api = str(get_current_settings().api.url or "")
        self.cancelled = False
        self._away = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watches-the-run", daemon=True)

    def __enter__(self) -> "CancelWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _look(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            try:
                reply = ask(f"{self.api}/flow_runs/{self.flow_run}", headers=prefect_headers(), timeout=10.0)
            except UnreachableError as error:
                if not self._away:
                    self.say(f"the Prefect server at {self.api} did not answer ({error}): training goes on without it")
                self._away = True
                continue
            if self._away:
                self.say(f"the Prefect server at {self.api} answers again")
                self._away = False
            if reply.ok and reply.json().get("state_type") in ("CANCELLING", "CANCELLED") and not self._ended.is_set():
                self.cancelled = True
                self.cancel()
                return


@contextmanager
def watched(root: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Around the body of a flow that no deployment runs: a cancel on the dashboard ends it as SIGTERM does.

    That it was cancelled is put into the outbox: Prefect's engine takes the signal for a crash.
    """
    flow_run = running.get_id()
    hears_signals = threading.current_thread() is threading.main_thread()
    if flow_run is None or running.get_parent_flow_run_id() or not hears_signals:
        yield
        return
    with CancelWatch(root, flow_run, lambda: os.kill(os.getpid(), signal.SIGTERM), say) as watch:
        try:
            yield
        finally:
            if watch.cancelled:
                words = "cancelled; the same command goes on from the last checkpoint"
                post(root, state_message(flow_run, "CANCELLED", "Cancelled", words, force=True, **address(root)))
