"""Which server answers: the one of the version that a name stands for now, and the next one beside it until it can.

All of it runs in one event loop: between looking which server is current and counting a request to it nothing else
happens, so that none is sent to a server that is being ended.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx

from alignment.errors import InputError, StageError
from alignment.registry.files import require_whole
from alignment.registry.records import RegisteredVersion
from flows.serving.version_server import VersionServer

LOOK_SECONDS = 2.0  # between two looks at the registry
WAIT_SECONDS = 60.0  # that a request waits for a server that is being started again
DRAIN_SECONDS = 600.0  # for the answers that a replaced server still owes
PAUSES = (1.0, 60.0)  # seconds before a server is started again: the first, and the most
MAX_FAILURES = 3  # starts in a row, without any server, after which there is nothing more to wait for
FORGIVEN_SECONDS = 60.0  # of health, after which earlier deaths no longer count


class UnavailableError(Exception):
    """No server answers now."""


class Switchboard:
    """Follows ``reference`` (``policy@champion``): ``current`` is the server that new requests go to."""

    def __init__(
        self,
        reference: str,
        look_up: Callable[[RegisteredVersion | None], RegisteredVersion],
        start: Callable[[RegisteredVersion], VersionServer],
        client: httpx.AsyncClient,
        say: Callable[[str], None],
    ) -> None:
        """``look_up`` says which version the name stands for, given what it stood for; ``start`` starts its server."""
        self.reference, self.look_up, self.start, self.client, self.say = reference, look_up, start, client, say
        self.current: VersionServer | None = None
        self._up = asyncio.Event()  # set while there is a current server
        self._wanted: RegisteredVersion | None = None
        self._asking: asyncio.Task[RegisteredVersion] | None = None
        self._coming: asyncio.Task[VersionServer] | None = None
        self._servers: list[VersionServer] = []  # all that were started and not yet ended
        self._ending: set[asyncio.Task[None]] = set()
        self._failures, self._not_before, self._up_since, self._problem = 0, 0.0, 0.0, ""

    async def run(self, stopping: asyncio.Event) -> None:
        """Follows the name until ``stopping``. Raises StageError where no server can be brought up at all."""
        while not stopping.is_set():
            await self._look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), LOOK_SECONDS if self._coming is None else 0.1)

    async def close(self) -> None:
        """Ends every server."""
        tasks: list[asyncio.Task[Any]] = [*self._ending, *(task for task in (self._coming, self._asking) if task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(asyncio.to_thread(server.end) for server in self._servers))

    async def take(self) -> VersionServer:
        """The current server, which is not ended before it is given back. Raises UnavailableError after a minute."""
        deadline = time.monotonic() + WAIT_SECONDS
        while self.current is None or not self.current.is_alive:
            if self.current is not None:
                self._lose(self.current)
            try:
                await asyncio.wait_for(self._up.wait(), deadline - time.monotonic())
            except TimeoutError:
                raise UnavailableError from None
        self.current.active += 1
        return self.current

    @staticmethod
    def give_back(server: VersionServer) -> None:
        """The request is answered."""
        server.active -= 1

    async def _look(self) -> None:
        await self._ask_registry()
        if self.current is not None and not self.current.is_alive:
            self._lose(self.current)
        if self.current is not None and time.monotonic() - self._up_since > FORGIVEN_SECONDS:
            self._failures = 0
        if self._coming is not None and self._coming.done():
            await self._arrived(self._coming)
        wanted = self._wanted
        if wanted is None or self._coming is not None or time.monotonic() < self._not_before:
            return
        if self.current is None or not _same(self.current.version, wanted):
            self._coming = asyncio.create_task(self._bring(wanted))

    async def _ask_registry(self) -> None:
        """What the name stands for; where that cannot be said now, what it stood for last.

        A registry that takes its time is not waited for: servers are looked after meanwhile.
        """
        if self._asking is None:
            self._asking = asyncio.create_task(asyncio.to_thread(self.look_up, self._wanted))
        await asyncio.wait({self._asking}, timeout=LOOK_SECONDS)
        if not self._asking.done():
            return
        asked, self._asking = self._asking, None
        try:
            self._wanted = asked.result()
            self._problem = ""
        except Exception as error:  # a registry that is away, in whatever library's words
            problem = (str(error) or type(error).__name__).splitlines()[0]
            if not self._problem:
                self.say(f"{self.reference} cannot be looked up ({problem}); what is served stays as it is")
            self._problem = problem

    async def _bring(self, version: RegisteredVersion) -> VersionServer:
        """Checks a version's files, starts its server and waits until it answers."""
        try:
            await asyncio.to_thread(require_whole, Path(version.folder), version.lineage_sha256)
        except InputError as error:
            raise StageError(f"{version} is not served: {error}") from None
        server = self.start(version)
        self._servers.append(server)
        try:
            await server.ready(self.client)
        except StageError:
            await self._end(server)
            raise
        return server

    async def _arrived(self, coming: "asyncio.Task[VersionServer]") -> None:
        """The next server answers: it takes the place of the current one. Or it does not."""
        self._coming = None
        try:
            server = coming.result()
        except StageError as error:
            self._failed(error)
            return
        if self._wanted is not None and not _same(server.version, self._wanted):
            await self._end(server)  # the name has moved on meanwhile
            return
        before, self.current = self.current, server
        self._up.set()
        self._up_since = time.monotonic()
        self.say(f"{self.reference} is {server.name} ({server.digest[:12]})")
        if before is not None:
            self._beside(self._retire(before))

    def _failed(self, error: StageError) -> None:
        self._failures += 1
        never_up = self._up_since == 0.0
        if self.current is None and (never_up or self._failures >= MAX_FAILURES):
            raise error
        pause = self._pause()
        rest = f"{self.current.name} goes on answering; " if self.current is not None else ""
        self.say(f"{error}\n{rest}it is tried again in {pause:.0f} s")

    def _pause(self) -> float:
        """Has the next start wait, the longer the more failures there were. Returns the seconds."""
        pause: float = min(PAUSES[0] * 2 ** (self._failures - 1), PAUSES[1])
        self._not_before = time.monotonic() + pause
        return pause

    def _lose(self, server: VersionServer) -> None:
        """The current server died: it is said, and another is started."""
        self.say(f"the server of {server.version} died and is started again: {server.ending()}")
        self.current = None
        self._up.clear()
        self._failures += 1
        self._pause()
        self._beside(self._end(server))

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _retire(self, server: VersionServer) -> None:
        await server.drain(DRAIN_SECONDS)
        await self._end(server)
        self.say(f"{server.name} has answered what it was asked, and has ended")

    async def _end(self, server: VersionServer) -> None:
        await asyncio.to_thread(server.end)
        if server in self._servers:
            self._servers.remove(server)


def _same(one: RegisteredVersion, other: RegisteredVersion) -> bool:
    return (one.name, one.version, one.lineage_sha256) == (other.name, other.version, other.lineage_sha256)
