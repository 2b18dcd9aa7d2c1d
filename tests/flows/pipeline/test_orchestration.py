"""Which errors out of Prefect's engine are its server's absence, and which are the work's or the user's."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.schemas.objects import State
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Completed, Failed

from flows.pipeline.orchestration import endings, of_the_server, run_flow

REQUEST = httpx.Request("POST", "http://127.0.0.1:1/api/v2/concurrency_limits/increment-with-lease")


def answered(status: int, kind: type[httpx.HTTPStatusError] = httpx.HTTPStatusError) -> httpx.HTTPStatusError:
    return kind("said", request=REQUEST, response=httpx.Response(status, request=REQUEST))


def slots(cause: Exception | None) -> ConcurrencySlotAcquisitionError:
    """What a task raises that could not have the slots of its tags."""
    error = ConcurrencySlotAcquisitionError("Unable to acquire concurrency slots on ['tag:register']")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (httpx.ConnectError("refused"), True),
        (httpx.ReadTimeout("hangs"), True),
        (answered(503), True),
        (answered(500, PrefectHTTPStatusError), True),
        (answered(404, PrefectHTTPStatusError), False),
        (slots(answered(503)), True),  # its database is locked
        (slots(httpx.ConnectError("refused")), True),  # it was killed just now
        (slots(answered(404)), False),
        (slots(None), False),  # there is no such limit
        (ConnectionError("of the work"), False),
    ],
)
def test_the_servers_absence_is_told_from_the_rest(error: Exception, away: bool) -> None:
    assert of_the_server(error) is away


@pytest.mark.parametrize(
    ("raised", "name"),
    [(httpx.ReadTimeout("hangs"), "Promoted"), (answered(503), "Promoted"), (ValueError(), "Failed")],
)
def test_a_run_that_ended_well_is_not_failed_by_a_server_that_cannot_hear_of_it(
    raised: Exception, name: str, tmp_path: Path
) -> None:
    """Prefect's engine takes what it meets when it tells the server for a failure of the flow, and returns that."""

    def begin() -> State[Any]:
        with endings.noting("tiny-1") as note:
            note(Completed(name="Promoted"))
        return Failed(data=raised)

    def again() -> State[Any]:
        raise AssertionError("the body is not to be run twice")

    assert run_flow(begin, again, run="tiny-1", root=tmp_path).name == name


HANGS = """
import sys, time
from prefect.logging.handlers import APILogWorker, emit_api_log
from flows.pipeline.orchestration import end_services

worker = APILogWorker.instance()
worker.send({"message": "said", "__payload_size__": 10})
time.sleep(3)  # until it is being sent
if sys.argv[1] == "told to end":
    APILogWorker.drain_all(timeout=0.2)
end_services(0.5)
if sys.argv[1] == "said afterwards":
    emit_api_log({"message": "said", "__payload_size__": 10})
    time.sleep(3)
"""


@pytest.mark.parametrize("how", ["at work", "told to end", "said afterwards"])
def test_a_server_that_hangs_keeps_no_process_from_ending(how: str, tmp_path: Path) -> None:
    """Also where Prefect itself told its service to end before: it no longer names the task that waits."""
    with socket.create_server(("127.0.0.1", 0)) as server:  # it accepts, and never answers
        api = f"http://127.0.0.1:{server.getsockname()[1]}/api"
        environment = os.environ | {"PREFECT_API_URL": api, "PREFECT_HOME": str(tmp_path)}
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-c", HANGS, how], env=environment, timeout=90, check=False)
    assert done.returncode == 0
    assert time.monotonic() - began < 60  # a request alone would wait for 60 s, and be tried again
