"""Where a stage runs: in this process, on a Ray of this machine, or on a cluster by its address.

One worker without an address needs no Ray, and none is started. Else a stage that trains runs on a crew of Ray Train's
workers (:mod:`flows.cluster.train_workers`, :mod:`flows.cluster.train_loop`) that share each batch, and one whose work falls into
pieces gives them to a pool of actors (:mod:`flows.cluster.actor_pool`). What workers say while they work are files below
the stage's folder: the workspace has to be on storage that all of them see. This package is the only one that imports
Ray.
"""

import importlib
import importlib.util
import os
import shutil
import time
from pathlib import Path
from typing import Any

from alignment.errors import Fault
from alignment.models.memory import naming_what_ran_out
from alignment.recipe.graph import has_workers, trains_together, workers_of
from alignment.recipe.recipe import Recipe
from alignment.stage import StageContext, StageResult
from flows.cluster.actor_pool import spread
from flows.cluster.ray_session import gpus_per_worker, start, stop
from flows.cluster.train_loop import Task, fit
from flows.shutdown import saved, told_to_end

__all__ = ["cluster_faults", "on_ray", "run_stage", "start", "stop"]
# What a worker is given of the environment.
CARRIED = ("CUBLAS_", "GOMP_", "HF_", "RLHF_", "TOKENIZERS_", "TQDM_", "TRANSFORMERS_", "TRL_")


def on_ray(recipe: Recipe, settings: Any) -> bool:
    """Whether a stage runs on Ray: several workers do it, or a cluster does. Other stages run in this process."""
    if recipe.resources.vllm is not None and settings.kind == "sample":
        return False  # the server's GPUs do all of the work
    rollouts = getattr(settings, "rollout_workers", 0)
    on_cluster = recipe.resources.address is not None and has_workers(settings)
    return workers_of(recipe, settings) > 1 or rollouts > 0 or on_cluster


def cluster_faults(recipe: Recipe) -> list[Fault]:
    """The fault of asking for Ray where it is not installed."""
    wanted = [name for name, settings in recipe.stages.items() if on_ray(recipe, settings)]
    if not wanted or importlib.util.find_spec("ray") is not None:
        return []
    problem = f"{', '.join(wanted)} would run on Ray, which is not installed"
    return [Fault(problem, "pip install 'rlhf-flows[cluster]', or leave workers and address out", field="resources")]


def run_stage(module: str, settings: Any, context: StageContext) -> StageResult:
    """Runs a stage (``run`` of ``module``) where its recipe says.

    Raises StageError where workers died too often, stood still, or found that the work cannot be done.
    """
    if not on_ray(context.recipe, settings):
        return _here(module, settings, context)
    home = context.checkpoints.parent / "ray"
    shutil.rmtree(home, ignore_errors=True)
    for part in ("workers", "usage"):
        (home / part).mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
    if not trains_together(settings):
        context.pool = spread(home, environment)
        result: StageResult = importlib.import_module(module).run(settings, context)
        return result
    return _together(module, settings, context, home, environment)


def _here(module: str, settings: Any, context: StageContext) -> StageResult:
    import torch

    started = time.perf_counter()
    context.preempted, context.saved = told_to_end, saved
    with naming_what_ran_out(context.name, settings):
        result: StageResult = importlib.import_module(module).run(settings, context)
    if torch.cuda.is_available() and context.recipe.resources.device != "cpu":
        context.gpu_seconds = time.perf_counter() - started
    return result


def _together(
    module: str, settings: Any, context: StageContext, home: Path, environment: dict[str, str]
) -> StageResult:
    recipe = context.recipe
    workers = workers_of(recipe, settings)
    rollouts = getattr(settings, "rollout_workers", 0)
    start(recipe, workers + rollouts)
    started = time.perf_counter()
    result, seconds = fit(Task(module, settings, context, home, environment))
    context.work_seconds += seconds
    context.gpu_seconds = (time.perf_counter() - started) * (workers + rollouts) * gpus_per_worker(recipe)
    context.cpu_seconds += sum(float(path.read_text()) for path in home.glob("usage/*"))
    return result
