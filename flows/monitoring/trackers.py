"""Live curves in the trackers that a recipe names: MLflow, TensorBoard, Weights & Biases.

A stage hands its progress over and goes on: a thread of its own tells the trackers. One that fails is said once and
told no more of this stage; the artifact has all curves in any case. A stage that goes on from its checkpoint goes on in
the same run of a tracker, where steps that are made again take the place of those that were lost.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from alignment.digests import content_id
from alignment.recipe.deployment import TrackerName
from alignment.registry.store import connect, experiment_id, metric_name, pages
from alignment.stage import Progress
from alignment.workspace import Workspace

_log = logging.getLogger(__name__)
SECONDS = 1.0  # steps of as long are sent together
END_SECONDS = 60.0  # for what is left when a stage has ended; MLflow's tables are made in some of it, the first time
IDENTITY = "rlhf.stage"  # MLflow's tag by which a stage's run is found again
ENDED = {True: "FAILED", False: "FINISHED"}


@dataclass(frozen=True, slots=True)
class TrackedStage:
    """The stage whose curves they are. ``key`` is its cache key: made again after a stop, it is the same."""

    recipe: str
    run: str
    name: str
    key: str
    settings: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """The same for every try of one stage of one run."""
        return content_id([self.run, self.name, self.key])


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A stage's figures at a step."""

    step: int
    seconds: float  # since 1970
    metrics: Mapping[str, float]


class Tracker(Protocol):
    """Somewhere that shows curves. It is used by one thread; whatever it raises ends its use for the stage."""

    def log(self, points: Sequence[CurvePoint]) -> None:
        """Takes figures, in the order of their steps."""

    def close(self, *, failed: bool) -> None:
        """Hears that there are no more."""


class MlflowTracker:
    """A run of the experiment ``RECIPE curves`` in the MLflow that holds the workspace's versions."""

    def __init__(self, workspace: Workspace, stage: TrackedStage) -> None:
        self.client = connect(workspace.mlflow_uri)
        experiment = experiment_id(workspace, f"{stage.recipe} curves")
        same = f"tags.`{IDENTITY}` = '{stage.identity}'"
        found = next(pages(self.client.search_runs, experiment_ids=[experiment], filter_string=same), None)
        if found is None:
            tags = {IDENTITY: stage.identity, "stage": stage.name, "run": stage.run}
            found = self.client.create_run(experiment, run_name=f"{stage.run}/{stage.name}", tags=tags)
        self.run_id = found.info.run_id
        self.client.update_run(self.run_id, status="RUNNING")

    def log(self, points: Sequence[CurvePoint]) -> None:
        from mlflow.entities import Metric

        rows = [
            Metric(metric_name(name), value, int(point.seconds * 1000), point.step)
            for point in points
            for name, value in point.metrics.items()
        ]
        for start in range(0, len(rows), 1000):
            self.client.log_batch(self.run_id, metrics=rows[start : start + 1000])

    def close(self, *, failed: bool) -> None:
        self.client.set_terminated(self.run_id, status=ENDED[failed])


class TensorboardTracker:
    """Event files below ``WORKSPACE/tensorboard/RUN/STAGE``: ``tensorboard --logdir WORKSPACE/tensorboard``."""

    def __init__(self, workspace: Workspace, stage: TrackedStage) -> None:
        self.folder: Path = workspace.folder("tensorboard", stage.run, stage.name)
        self._writer: Any = None

    def log(self, points: Sequence[CurvePoint]) -> None:
        from tensorboardX import SummaryWriter

        if self._writer is None and points:
            # Steps after the checkpoint that a stage goes on from are drawn again: the old ones are hidden.
            again = {"purge_step": points[0].step} if any(self.folder.iterdir()) else {}
            self._writer = SummaryWriter(str(self.folder), **again)
        for point in points:
            for name, value in point.metrics.items():
                self._writer.add_scalar(name, value, point.step, walltime=point.seconds)
        if self._writer is not None:
            self._writer.flush()

    def close(self, *, failed: bool) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbTracker:
    """A run of the project RECIPE at Weights & Biases; ``WANDB_MODE=offline`` keeps it in the workspace."""

    def __init__(self, workspace: Workspace, stage: TrackedStage) -> None:
        import wandb

        self.run = wandb.init(
            project=stage.recipe, group=stage.run, name=stage.name, id=stage.identity, resume="allow",
            config=dict(stage.settings), dir=str(workspace.folder("wandb")), reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", x_disable_meta=True, x_disable_stats=True),
        )  # fmt: skip

    def log(self, points: Sequence[CurvePoint]) -> None:
        for point in points:
            self.run.log(dict(point.metrics), step=point.step)

    def close(self, *, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


Opener = Callable[[Workspace, TrackedStage], Tracker]
OPENERS: dict[TrackerName, Opener] = {
    "mlflow": MlflowTracker,
    "tensorboard": TensorboardTracker,
    "wandb": WandbTracker,
}


@dataclass
class StageTrackers:
    """Tells the trackers of one stage, from a thread of its own."""

    workspace: Workspace
    stage: TrackedStage
    names: Sequence[TrackerName]
    openers: Mapping[TrackerName, Opener] = field(default_factory=lambda: OPENERS)

    def __post_init__(self) -> None:
        self._points: queue.SimpleQueue[CurvePoint | None] = queue.SimpleQueue()
        self._failed = False
        self._thread = threading.Thread(target=self._work, name="tells-trackers", daemon=True)
        if self.names:
            self._thread.start()

    def log(self, progress: Progress) -> None:
        """Hands a step over. Steps without figures say nothing that a curve could show."""
        if self.names and progress.metrics:
            self._points.put(CurvePoint(progress.step, time.time(), dict(progress.metrics)))

    def close(self, *, failed: bool) -> None:
        """Waits until the trackers have it all, for so long at most."""
        if not self.names:
            return
        self._failed = failed
        self._points.put(None)
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():
            _log.warning("%s: the trackers did not take all curves in %g s", self.stage.name, END_SECONDS)

    def _work(self) -> None:
        opened = {name: tracker for name in self.names if (tracker := self._open(name)) is not None}
        for points in self._batches():
            for name in list(opened):
                if not self._tell(name, partial(opened[name].log, points)):
                    del opened[name]
        for name, tracker in opened.items():
            self._tell(name, partial(tracker.close, failed=self._failed))

    def _open(self, name: TrackerName) -> Tracker | None:
        opened: list[Tracker] = []
        self._tell(name, lambda: opened.append(self.openers[name](self.workspace, self.stage)))
        return opened[0] if opened else None

    def _batches(self) -> Iterator[list[CurvePoint]]:
        """What came within a second of each other, until there is no more."""
        while (first := self._points.get()) is not None:
            time.sleep(0 if self._failed else SECONDS)
            points = [first]
            while not self._points.empty():
                point = self._points.get()
                if point is None:
                    yield points
                    return
                points.append(point)
            yield points

    def _tell(self, name: TrackerName, what: Callable[[], None]) -> bool:
        try:
            what()
        except Exception as error:
            _log.warning(
                "%s: the tracker %s is told no more: %s: %s", self.stage.name, name, type(error).__name__, error
            )
            return False
        return True
