"""One version's server as the front sees it: a child process, its address, and the requests that it still answers."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time

import httpx

from alignment.errors import StageError
from alignment.registry.records import RegisteredVersion
from alignment.workspace import Workspace
from flows.services.ports import LOOPBACK, reserved_port
from flows.services.servers import end_of_log
from flows.serving.served_folder import defaults_of

START_SECONDS = 600.0  # for an adapter to be merged and the weights to be read
END_SECONDS = 5.0  # for a server that answers nobody any more
LOOK_SECONDS = 0.1
MODULE = "flows.serving.model_server"


class VersionServer:
    """The server of one version. ``active`` counts the requests that were given to it and are not answered yet."""

    def __init__(
        self, workspace: Workspace, version: RegisteredVersion, hidden: tuple[str, ...] = (), module: str = MODULE
    ) -> None:
        """Starts the process, without waiting for it.

        ``hidden`` are variables that it is not to see; ``module`` is what it runs (:mod:`flows.serving.model_server`).
        """
        self.version, self.active = version, 0
        self.name, self.digest = f"{version.name}/{version.version}", version.candidate.digest
        self.defaults: dict[str, float] = {}
        self.log = workspace.folder("services") / f"serve-{version.name}-v{version.version}.log"
        self._folder = workspace.root / "serving" / version.name / f"{version.name}-v{version.version}"
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        with reserved_port() as (port, reserved), self.log.open("ab") as log:
            self.url = f"http://{LOOPBACK}:{port}"
            command = [sys.executable, "-m", module, str(workspace.root), str(port)]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True,
                pass_fds=[reserved],
            )  # fmt: skip
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already, which is seen elsewhere
            self.process.stdin.write(version.model_dump_json().encode() + b"\n")
            self.process.stdin.flush()

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    async def ready(self, client: httpx.AsyncClient) -> None:
        """Waits until the server answers. Raises StageError, with its log's end, where it does not come up."""
        deadline = time.monotonic() + START_SECONDS
        while not await self.is_healthy(client):
            if not self.is_alive or time.monotonic() > deadline:
                raise StageError(f"the server of {self.version} did not come up: {self.ending()}")
            await asyncio.sleep(LOOK_SECONDS)
        self.defaults = defaults_of(self._folder)

    async def is_healthy(self, client: httpx.AsyncClient) -> bool:
        """Whether the process lives and its server answers."""
        try:
            return self.is_alive and (await client.get(f"{self.url}/health", timeout=5.0)).status_code == 200
        except httpx.HTTPError:
            return False

    def ending(self) -> str:
        """How the process ended, and the end of its log."""
        code = self.process.poll()
        how = "it does not answer" if code is None else f"it ended with {code}"
        return f"{how}; its log is {self.log}{end_of_log(self.log)}"

    async def drain(self, seconds: float) -> None:
        """Waits until every request that it was given is answered, ``seconds`` at most."""
        deadline = time.monotonic() + seconds
        while self.active and self.is_alive and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS)

    def end(self) -> None:
        """Ends the process and its group; one that does not heed SIGTERM is killed."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_SECONDS)
                break
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
