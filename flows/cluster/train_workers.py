"""Ray Train's workers, kept from one stage to the next: what a stage after the first pays is a message.

A worker group is one run of Ray Train whose training function takes the next stage from a queue, runs it, and asks
again. Ray Train starts the workers, joins them in a process group (nccl on GPUs, gloo elsewhere) and starts them again
when one dies; they then ask for the stage that is not finished. On this machine a group stays until a stage wants
another kind; on a cluster, whose machines are others' too, it ends after its stage.
"""

import logging
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from alignment.recipe.graph import fewest_workers, workers_of
from alignment.recipe.resources import Resources
from flows.cluster.cleanup import holds, release_all
from flows.cluster.ray_session import gpus_per_worker, on_this_machine, resources_per_worker
from flows.cluster.stage_queue import StageQueue

_log = logging.getLogger(__name__)
Serve = Callable[[dict[str, Any]], None]  # what each worker runs
SECONDS = 30.0  # that the end of a group may take


class WorkerGroupSpec(NamedTuple):
    """What a worker group is made for: stages with the same one share it."""

    address: str | None
    fewest: int
    workers: int
    resources: tuple[tuple[str, float], ...]  # of each worker
    max_failures: int  # Ray Train's own count of them; -1: the queue counts, each stage's alone


def group_spec(resources: Resources, settings: Any) -> WorkerGroupSpec:
    """The worker group that a stage wants. Ray has to be there: it knows the GPUs."""
    each = tuple(sorted(resources_per_worker(resources).items()))
    fewest, workers = fewest_workers(resources, settings), workers_of(resources, settings)
    failures = -1 if on_this_machine(resources) else resources.max_failures  # preemptions do not count there
    return WorkerGroupSpec(resources.address, fewest, workers, each, failures)


class WorkerGroup:
    """A run of Ray Train under way, whose workers each run ``serve`` with the queue.

    ``folder`` is where Ray Train keeps its own state, on storage that all see; None: a temporary one of this machine.
    """

    def __init__(self, spec: WorkerGroupSpec, resources: Resources, folder: Path | None, serve: Serve) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.spec, self.serve = spec, serve
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.queue = ray.remote(num_cpus=0, scheduling_strategy=here)(
            StageQueue
        ).remote()  # not on a node that may be lost
        self.error: BaseException | None = None
        self._temporary = tempfile.TemporaryDirectory(prefix="rlhf-workers-")
        arguments = resources, str(folder or self._temporary.name)
        self.thread = threading.Thread(target=self._run, args=arguments, name="worker-group", daemon=True)
        self.thread.start()

    @property
    def there(self) -> bool:
        """Whether it works, or waits for work."""
        return self.thread.is_alive() and self.error is None

    def _run(self, resources: Resources, folder: str) -> None:
        import ray
        from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2._internal.execution.callback import ControllerCallback

        queue, fewest, workers = self.queue, self.spec.fewest, self.spec.workers
        # A cluster may have to grow first; one that lost a node is soon asked for less.
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "30" if fewest < workers else "900"

        class AnnounceController(ControllerCallback):  # type: ignore[misc]  # Ray is untyped here
            """Ray names a run's controller to nobody; it has to be known to be ended."""

            def after_controller_start(self, train_run_context: Any) -> None:
                ray.get(queue.hello.remote(ray.get_runtime_context().current_actor))

        trainer = TorchTrainer(
            self.serve,
            train_loop_config={"queue": queue},
            scaling_config=ScalingConfig(
                num_workers=(fewest, workers) if fewest < workers else workers,
                use_gpu=gpus_per_worker(resources) > 0,
                resources_per_worker=dict(self.spec.resources),
            ),
            run_config=RunConfig(
                name="worker-group",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=self.spec.max_failures),
                logging_config=LoggingConfig(log_level="ERROR"),
                callbacks=[AnnounceController()],
            ),
        )
        try:
            trainer.fit()
        except BaseException as error:  # who waits for the stage says it
            self.error = error

    def close(self) -> None:
        """Ends it, once it has nothing to do, and waits until what it held is free."""
        import ray

        if self.there:
            ray.get(self.queue.close.remote())
            self.thread.join(SECONDS)
        if self.thread.is_alive():
            self.abort()
            return
        ray.kill(self.queue)
        self._temporary.cleanup()

    def abort(self) -> None:
        """Ends it and its workers, whatever they do, or fail to do."""
        import ray

        try:
            leader = ray.get(self.queue.leader.remote(), timeout=SECONDS)
            if leader is not None:
                self._abort_controller(leader)
            ray.kill(self.queue)
        except ray.exceptions.RayError as error:
            _log.warning("the worker group could not be ended: %s", error)
        self.thread.join(SECONDS)
        if self.thread.is_alive():
            release_all(but=release)
            ray.shutdown()  # without us all of ours ends

    def _abort_controller(self, leader: Any) -> None:
        import ray

        try:
            ray.get(leader.abort.remote(), timeout=SECONDS)
        except ray.exceptions.RayActorError:
            pass  # it has gone, as it should
        except ray.exceptions.RayError as error:
            _log.warning("the worker group's controller did not answer (%s) and is killed", error)
            ray.kill(leader)


_here: list[WorkerGroup] = []  # the one that waits for the next stage, or none


def worker_group_for(resources: Resources, settings: Any, folder: Path | None, serve: Serve) -> WorkerGroup:
    """The worker group that waits, where it is of the right kind; else a new one, whose workers run ``serve``."""
    spec = group_spec(resources, settings)
    if _here and _here[0].there and _here[0].spec == spec:
        return _here[0]
    release()
    holds(release)
    _here.append(WorkerGroup(spec, resources, folder, serve))
    return _here[0]


def release() -> None:
    """Ends the waiting worker group and gives back what it holds."""
    while _here:
        _here.pop().close()


def abort() -> None:
    """Ends the worker group, whatever it does."""
    while _here:
        _here.pop().abort()
