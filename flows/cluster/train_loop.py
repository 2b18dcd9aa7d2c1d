"""A training stage on several workers: each runs the stage's own function, with its rank in the context.

When a worker dies all of them start again, and the trainer goes on from the stage's last checkpoint, so the result is
the same. Rank 0 alone writes and reports.
"""

import gc
import importlib
import json
import os
import shutil
import tempfile
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignment.durable_files import write_text
from alignment.errors import InputError, StageError
from alignment.models.memory import naming_what_ran_out
from alignment.stage import Progress, StageContext, StageResult, silent
from flows.cluster.ray_session import on_this_machine
from flows.cluster.stack_dump import say_where
from flows.cluster.train_workers import WorkerGroup, abort, release, worker_group_for
from flows.cluster.watchdog import FAILED, StageWatchdog

POLL_SECONDS = 0.1
# Errors that the same work would make again. A lost connection is a RuntimeError, and is what a worker's death looks
# like to the others.
FINAL = (StageError, InputError, ArithmeticError, LookupError, ValueError, TypeError, AttributeError, AssertionError)


@dataclass(frozen=True, slots=True)
class Task:
    """A stage as the workers are given it."""

    module: str
    settings: Any
    context: StageContext
    home: Path
    environment: dict[str, str]


def fit(task: Task) -> tuple[StageResult, float]:
    """The stage on its workers. Returns rank 0's result, and the seconds that it was at work."""
    context = task.context
    # On this machine a worker group may outlive the folder of its first stage.
    folder = None if on_this_machine(context.run.resources) else task.home / "train"
    group = worker_group_for(context.run.resources, task.settings, folder, serve)
    watchdog = StageWatchdog(task.home, context)
    try:
        result, seconds = _wait(group, _to_travel(task), watchdog)
    except BaseException:  # it failed, stood still, or Ctrl-C: whatever hangs where, all of it ends
        abort()
        raise
    watchdog.pass_on()
    if not on_this_machine(context.run.resources):
        release()
    return result, seconds


def _to_travel(task: Task) -> Task:
    """The task without who hears of it, which does not travel."""
    return replace(task, context=replace(task.context, report=silent))


def _wait(group: WorkerGroup, task: Task, watchdog: StageWatchdog) -> tuple[StageResult, float]:
    """Looks on until the stage is done."""
    import ray

    name, failures = task.context.name, task.context.run.resources.max_failures
    allowed = failures + 1 if on_this_machine(task.context.run.resources) else None
    number = ray.get(group.queue.put.remote([ray.put(task)], allowed))
    reference = group.queue.result_of.remote(number)
    while True:
        ready, _rest = ray.wait([reference], timeout=POLL_SECONDS)
        if ready:
            if (found := ray.get(reference)) is None:
                raise StageError(f"{name}: its workers died more often than resources.max_failures={failures} times")
            return found  # type: ignore[no-any-return]
        watchdog.look()
        if not group.there:
            raise StageError(f"{name}: its workers failed too often; the last time: {group.error}") from group.error


def serve(config: dict[str, Any]) -> None:
    """What each worker runs: one stage after the other, as the queue gives them out, until there are no more."""
    import ray
    import ray.train
    import torch

    queue, place = config["queue"], ray.train.get_context()
    done, rank = 0, place.get_world_rank()
    while (given := ray.get(queue.next.remote(done, rank))) is not None:
        done, (reference,) = given
        result = work(ray.get(reference), rank, place.get_world_size())
        if place.get_world_size() > 1:
            torch.distributed.barrier()  # a worker that dies at the very end is still this stage's
        if rank == 0:
            ray.get(queue.finish.remote(done, result))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def work(task: Task, rank: int, workers: int) -> tuple[StageResult, float]:
    """A stage as one of its workers. Returns its result, and the seconds that it was at work."""
    import torch

    os.environ.update(task.environment)
    say_where(task.home, str(rank))
    began = time.process_time()
    context, settings = replace(task.context, rank=rank, workers=workers), task.settings
    resources = context.run.resources
    if not on_this_machine(context.run.resources):
        context.preempted = preempted
    if rollouts := settings.rollout_processes():
        from flows.cluster.rollout_actors import ActorEngineFactory  # brings torch along

        context.rollouts = ActorEngineFactory(rollouts, task.home, task.environment, context)
    if resources.threads:
        torch.set_num_threads(resources.threads)
    with tempfile.TemporaryDirectory(prefix="rlhf-") as scratch:
        if rank == 0:
            shutil.rmtree(context.output, ignore_errors=True)  # what a dead worker had half written
            context.output.mkdir(parents=True)
            context.report = _to_file(task.home / "progress.jsonl")
        else:
            context.output = Path(scratch)
        try:
            with naming_what_ran_out(context.name, settings):
                result = importlib.import_module(task.module).run(settings, context)
        except FINAL as error:
            words = str(error) if isinstance(error, StageError | InputError) else traceback.format_exc()
            write_text(task.home / FAILED, words)
            raise
    write_text(task.home / "usage" / f"{rank}-{os.getpid()}", str(time.process_time() - began))
    return result, context.work_seconds


def preempted() -> bool:
    """Whether a node is about to be taken away (its SIGTERM came, say). Every worker of the stage has to ask."""
    import ray.train

    return ray.train.get_preemption_info() is not None


def _to_file(path: Path) -> Any:
    def report(progress: Progress) -> None:
        row = {"step": progress.step, "total": progress.total, "tokens": progress.tokens}
        with path.open("a") as file:
            file.write(json.dumps(row | {"metrics": dict(progress.metrics)}) + "\n")

    return report
