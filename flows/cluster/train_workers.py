"""Ray Train's workers, kept from one stage to the next: what a stage after the first pays is a message.

A crew is one run of Ray Train whose training function asks a desk for the next stage, does it, and asks again. Ray
Train starts the workers, joins them in a process group (nccl on GPUs, gloo elsewhere) and starts them again when one
dies; they then ask for the stage that is not finished. On this machine a crew stays until a stage wants another kind;
on a cluster, whose machines are others' too, it goes after its stage.
"""

import logging
import os
import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple

from alignment.recipe.graph import fewest_workers, workers_of
from alignment.recipe.resources import Resources
from flows.cluster.ray_session import gpus_per_worker, on_this_machine, resources_per_worker
from flows.cluster.stage_queue import Desk

_log = logging.getLogger(__name__)
SECONDS = 30.0  # that the end of a crew may take


class Shape(NamedTuple):
    """What a crew is made for."""

    address: str | None
    fewest: int
    workers: int
    resources: tuple[tuple[str, float], ...]  # of each worker
    max_failures: int  # Ray Train's own count of them; -1: the desk counts, each stage's alone


def shape_of(resources: Resources, settings: Any) -> Shape:
    """The crew that a stage wants. Ray has to be there: it knows the GPUs."""
    each = tuple(sorted(resources_per_worker(resources).items()))
    fewest, workers = fewest_workers(resources, settings), workers_of(resources, settings)
    failures = -1 if on_this_machine(resources) else resources.max_failures  # preemptions do not count there
    return Shape(resources.address, fewest, workers, each, failures)


class Crew:
    """A run of Ray Train under way. ``folder`` is where Ray Train keeps its own notes, on storage that all see; None: a
    temporary one of this machine."""

    def __init__(self, shape: Shape, resources: Resources, folder: Path | None) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.shape = shape
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.desk = ray.remote(num_cpus=0, scheduling_strategy=here)(Desk).remote()  # not on a node that may be lost
        self.error: BaseException | None = None
        self._temporary = tempfile.TemporaryDirectory(prefix="rlhf-crew-")
        arguments = resources, str(folder or self._temporary.name)
        self.thread = threading.Thread(target=self._run, args=arguments, name="crew", daemon=True)
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

        from flows.cluster.train_loop import serve

        desk, fewest, workers = self.desk, self.shape.fewest, self.shape.workers
        # A cluster may have to grow first; one that lost a node is soon asked for less.
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "30" if fewest < workers else "900"

        class Introduction(ControllerCallback):  # type: ignore[misc]  # Ray is untyped here
            """Ray names a run's controller to nobody; it has to be known to be ended."""

            def after_controller_start(self, train_run_context: Any) -> None:
                ray.get(desk.hello.remote(ray.get_runtime_context().current_actor))

        trainer = TorchTrainer(
            serve,
            train_loop_config={"desk": desk},
            scaling_config=ScalingConfig(
                num_workers=(fewest, workers) if fewest < workers else workers,
                use_gpu=gpus_per_worker(resources) > 0,
                resources_per_worker=dict(self.shape.resources),
            ),
            run_config=RunConfig(
                name="crew",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=self.shape.max_failures),
                logging_config=LoggingConfig(log_level="ERROR"),
                callbacks=[Introduction()],
            ),
        )
        try:
            trainer.fit()
        except BaseException as error:  # who waits for the stage says it
            self.error = error

    def leave(self) -> None:
        """Ends it, once it has nothing to do, and waits until what it held is free."""
        import ray

        if self.there:
            ray.get(self.desk.close.remote())
            self.thread.join(SECONDS)
        if self.thread.is_alive():
            self.end()
            return
        ray.kill(self.desk)
        self._temporary.cleanup()

    def end(self) -> None:
        """Ends it and its workers, whatever they do, or fail to do."""
        import ray

        try:
            leader = ray.get(self.desk.leader.remote(), timeout=SECONDS)
            if leader is not None:
                self._abort(leader)
            ray.kill(self.desk)
        except ray.exceptions.RayError as error:
            _log.warning("the crew could not be ended: %s", error)
        self.thread.join(SECONDS)
        if self.thread.is_alive():
            from flows.cluster import actor_pool

            actor_pool.dismiss()
            ray.shutdown()  # without us all of ours ends

    def _abort(self, leader: Any) -> None:
        import ray

        try:
            ray.get(leader.abort.remote(), timeout=SECONDS)
        except ray.exceptions.RayActorError:
            pass  # it has gone, as it should
        except ray.exceptions.RayError as error:
            _log.warning("the crew's controller did not answer (%s) and is killed", error)
            ray.kill(leader)


_here: list[Crew] = []  # the one that waits for the next stage, or none


def crew_for(resources: Resources, settings: Any, folder: Path | None) -> Crew:
    """The crew that waits, where it is of the right kind; else a new one."""
    shape = shape_of(resources, settings)
    if _here and _here[0].there and _here[0].shape == shape:
        return _here[0]
    dismiss()
    _here.append(Crew(shape, resources, folder))
    return _here[0]


def dismiss() -> None:
    """Sends the waiting crew home."""
    while _here:
        _here.pop().leave()


def disband() -> None:
    """Ends the crew, whatever it does."""
    while _here:
        _here.pop().end()
