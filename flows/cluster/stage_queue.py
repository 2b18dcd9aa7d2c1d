"""The queue through which the driver gives stages to workers that stay."""

import asyncio
from typing import Any


class StageQueue:
    """The actor through which the driver gives stages to a worker group, one at a time."""

    def __init__(self) -> None:
        self.number = self.finished = 0  # of the newest stage, and of the newest that is finished
        self.given = 0  # how often the newest was given out: once, and again after each death of a worker
        self.allowed: int | None = None  # how often that may be
        self.task: Any = None
        self.result: Any = None
        self.closed = False
        self.controller: Any = None
        self._changed = asyncio.Condition()

    async def hello(self, controller: Any) -> None:
        """Takes the controller of the worker group, which announces itself."""
        self.controller = controller

    async def leader(self) -> Any:
        """The worker group's controller, None before there is one."""
        return self.controller

    async def put(self, task: Any, allowed: int | None) -> int:
        """Lays down a stage, to be begun ``allowed`` times at most; its number."""
        async with self._changed:
            self.number, self.task, self.given, self.allowed = self.number + 1, task, 0, allowed
            self._changed.notify_all()
            return self.number

    async def next(self, done: int, rank: int) -> tuple[int, Any] | None:
        """The stage to be done now, for a worker that has done ``done`` (0: none yet); None: there are no more."""
        async with self._changed:
            while True:
                await self._changed.wait_for(lambda: self.closed or self.number > max(done, self.finished))
                if self.closed:
                    return None
                self.given += rank == 0
                if self.allowed is None or self.given <= self.allowed:
                    return self.number, self.task
                self._finish(None)

    async def finish(self, number: int, result: Any) -> None:
        """Takes a stage's result."""
        async with self._changed:
            if number == self.number:
                self._finish(result)

    def _finish(self, result: Any) -> None:
        self.finished, self.result, self.task = self.number, result, None
        self._changed.notify_all()

    async def result_of(self, number: int) -> Any:
        """Waits for a stage's result: None where workers died too often."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.finished >= number)
            return self.result

    async def close(self) -> None:
        """Ends the queue: workers that ask for the next stage get None."""
        async with self._changed:
            self.closed = True
            self._changed.notify_all()
