"""Pieces of work that do not depend on one another, on a pool of actors.

Each actor builds what does a stage's work once (loads a model, say) and is then given one piece after another. One that
dies is started again by Ray and given its piece again, up to ``resources.max_failures`` times; one whose node is lost,
or for which there is no room yet, is given nothing until it runs, and its piece goes to another. The pieces' results do
not depend on who made them. On this machine the actors stay for the next stage, with what they have imported; on a
cluster, whose machines are others' too, they go.
"""

import gc
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignment.errors import StageError, keeping
from alignment.parallel_map import Build, Each, Pool, here
from alignment.recipe.graph import workers_of
from alignment.stage import StageContext, silent
from flows.cluster.cleanup import holds, release_all
from flows.cluster.ray_errors import answer_of
from flows.cluster.ray_session import actor_options, gpus_per_worker, on_this_machine, start
from flows.cluster.stack_dump import say_where
from flows.cluster.watchdog import stalled

POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Work:
    """A stage as the actors are given it. ``number`` tells one from another, and from the same begun again."""

    build: Build
    settings: Any
    context: StageContext
    home: Path
    environment: Mapping[str, str]
    number: int = field(default_factory=time.time_ns)


def spread(home: Path, environment: Mapping[str, str]) -> Pool:
    """A pool on Ray, as :mod:`alignment.parallel_map` wants one; its workers say under ``home`` where they are."""

    @contextmanager
    def pool(build: Build, settings: Any, context: StageContext) -> Iterator[Each]:
        import ray

        number = workers_of(context.run.resources, settings)
        start(context.run.resources, number)
        gpus = gpus_per_worker(context.run.resources)
        if gpus:
            release_all(but=release)  # who trains holds them, also while it waits for its next stage
        carried = replace(context, report=silent, pool=here)
        work = ray.put(Work(build, settings, carried, home, dict(environment)))
        began, asked = time.perf_counter(), 0

        def each(pieces: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
            nonlocal asked
            asked = min(number, len(pieces))
            return _each(_actors(context, asked), work, pieces, context, home)

        try:
            yield each
        except BaseException as error:  # what they do, if anything, is of no use any more
            with keeping(error, "ending the actors"):
                release()
            raise
        finally:
            context.gpu_seconds += (time.perf_counter() - began) * asked * gpus
        if gpus or not on_this_machine(context.run.resources):
            release()

    return pool


_waiting: list[Any] = []  # actors, and the options that they were made with
_options: dict[str, Any] = {}


def _actors(context: StageContext, number: int) -> list[Any]:
    """So many actors: those that wait, where they are of the right kind, and new ones."""
    import ray

    options = actor_options(context.run.resources)
    if options != _options:
        release()
        _options.update(options)
    holds(release)
    worker = ray.remote(**options)(PieceWorker)
    _waiting.extend(worker.remote(str(place)) for place in range(len(_waiting), number))
    return _waiting[:number]


def release() -> None:
    """Ends all actors, whatever they do."""
    import ray

    _options.clear()
    while _waiting:
        ray.kill(_waiting.pop())


def _each(
    actors: list[Any], work: Any, pieces: Mapping[int, Any], context: StageContext, home: Path
) -> Iterator[tuple[int, Any]]:
    """Gives each actor its next piece as soon as it has done one; yields (place, result) as they come."""
    import ray

    waiting, idle, done = deque(pieces), list[Any](), 0
    busy: dict[Any, tuple[Any, int]] = {}  # what was asked → whom, and for which piece
    away = {actor.ready.remote(): actor for actor in actors}  # those that have no place yet, or lost it
    since = time.monotonic()
    while done < len(pieces):
        while waiting and idle:
            actor, place = idle.pop(0), waiting.popleft()
            busy[actor.do.remote([work], place, pieces[place])] = actor, place
        ready, _rest = ray.wait([*busy, *away], timeout=POLL_SECONDS)
        if not ready and time.monotonic() - since > context.run.resources.stall_seconds:
            raise stalled(home, context)
        for reference in ready:
            given: tuple[Any, int | None] = busy.pop(reference) if reference in busy else (away.pop(reference), None)
            actor, asked = given
            answer = _answer_of(reference, context.name)
            if answer is None:
                away[actor.ready.remote()] = actor
                waiting.extend([] if asked is None else [asked])
                continue
            idle.append(actor)
            if asked is not None:
                since = time.monotonic()
                done += 1
                context.cpu_seconds += answer[2]
                yield asked, answer[1]


def _answer_of(reference: Any, name: str) -> Any:
    """As :func:`answer_of`; None where the actor can't be reached: its node is lost, and it may come back elsewhere."""
    import ray

    try:
        return answer_of(reference, name)
    except StageError as error:
        if isinstance(error.__cause__, ray.exceptions.ActorUnavailableError):
            return None
        raise


class PieceWorker:
    """The actor: does pieces with what a stage's ``build`` makes of its settings and context."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.number: int | None = None  # of the stage that `_do` is for
        self._do: Callable[[Any], Any] | None = None

    def ready(self) -> bool:
        """True, as soon as the actor runs somewhere."""
        return True

    def do(self, work: list[Any], place: int, piece: Any) -> tuple[int, Any, float]:
        """``place``, the piece's result, and the processor's seconds that it took. ``work`` holds a :class:`Work`."""
        import ray
        import torch

        began = time.process_time()
        stage: Work = ray.get(work[0])
        if self._do is None or stage.number != self.number:
            self._do = None
            gc.collect()
            os.environ.update(stage.environment)
            say_where(stage.home, self.name)
            if threads := stage.context.run.resources.threads:
                torch.set_num_threads(threads)
            self._do, self.number = stage.build(stage.settings, stage.context), stage.number
        result = self._do(piece)
        return place, result, time.process_time() - began
