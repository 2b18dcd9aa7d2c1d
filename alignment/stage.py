"""What a stage is to the library: a function from a context to a result.

A stage's function has the signature ``(settings, context) -> StageResult``. It writes its artifact's files under
``context.output`` and its checkpoints under ``context.checkpoints``; whoever runs it (:mod:`flows.pipeline.stage_task`)
makes both folders, names and digests the artifact, and runs it again on the same folders after a crash.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.errors import NotFiniteError, StageError
from alignment.parallel_map import Pool, here
from alignment.recipe.run_settings import RunSettings
from alignment.records import Artifact


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a stage stands. ``metrics`` are the newest values (loss, reward …); ``tokens`` counts since its start."""

    step: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0


def never() -> bool:
    """Nobody takes this machine away."""
    return False


def nothing() -> None:
    """Does nothing: who goes on after a checkpoint."""


def silent(_progress: Progress) -> None:
    """Hears nothing."""


@dataclass(slots=True)
class StageContext:
    """What a stage is given.

    ``inputs`` maps a stage's name (as the settings speak of it) to its artifact; the base model is ``inputs["base"]``,
    an artifact of kind "model" like any other. ``data`` maps "prompts", "held_out_prompts", "demonstrations",
    "preferences", "feedback" and "corpus" to existing files. ``work_seconds`` adds up the time inside :meth:`working`.
    ``kept`` is a folder that outlives stages and their keys, for what was paid for: a judge's answers.
    """

    name: str
    run: RunSettings
    inputs: Mapping[str, Artifact]
    data: Mapping[str, Path]
    output: Path
    checkpoints: Path
    report: Callable[[Progress], None] = silent
    work_seconds: float = 0.0
    kept: Path | None = None
    rank: int = 0  # of this process among the workers that share the stage's batches: rank 0 alone writes and reports
    workers: int = 1
    cpu_seconds: float = 0.0  # of processes other than the one that runs the stage
    gpu_seconds: float = 0.0  # of all GPUs that the stage holds
    pool: Pool = here  # who does work that falls into pieces
    rollouts: Callable[[Any], Any] | None = None  # makes a `PushedEngine` of the stage's settings; None: samples here
    preempted: Callable[[], bool] = never  # whether this is the time to save: a worker is about to be taken away
    saved: Callable[[], None] = nothing  # told of each checkpoint; it may end the stage, which was told to end

    @property
    def sharded(self) -> bool:
        """Whether each of several workers holds a part of the model in training, and none holds all of it."""
        return self.workers > 1 and self.run.resources.sharding != "none"

    @contextmanager
    def working(self) -> Iterator[None]:
        """Counts the time inside a trainer, sampler or evaluator itself, apart from loading and saving.

        Numbers that are not finite end the stage by its name: raises StageError for the NotFiniteError inside.
        """
        start = time.perf_counter()
        try:
            yield
        except NotFiniteError as error:
            raise StageError(f"{self.name}: {error}") from error
        finally:
            self.work_seconds += time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage says about its artifact: its kind, its figures, and curves as ``{metric: [(step, value), …]}``.

    ``origins`` name what it is made of that no artifact is: a model from outside, with its digest.
    """

    kind: str
    metrics: dict[str, float]
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    tokens_trained: int = 0
    tokens_sampled: int = 0
    origins: tuple[str, ...] = ()
