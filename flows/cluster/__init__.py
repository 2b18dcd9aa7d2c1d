"""Where a stage runs: in this process, on a Ray of this machine, or on a cluster by its address.

One worker without an address needs no Ray, and none is started. Else a stage that trains runs on a group of Ray Train's
workers (:mod:`flows.cluster.train_workers`, :mod:`flows.cluster.train_loop`) that share each batch, and one whose work
falls into pieces gives them to a pool of actors (:mod:`flows.cluster.actor_pool`). What workers say while they work are
files below the stage's folder: the workspace has to be on storage that all of them see. This package is the only one
that imports Ray. Imports run from cleanup, ray_errors and stack_dump over ray_session up to train_loop and actor_pool.
"""

import importlib
import os
import shutil
import time
from pathlib import Path

from alignment.models.memory import naming_what_ran_out
from alignment.recipe.graph import trains_together, workers_of
from alignment.recipe.resources import Resources
from alignment.recipe.stages.spec import StageSettings
from alignment.stage import StageContext, StageResult
from flows.cluster.actor_pool import spread
from flows.cluster.capacity import fitting_at_once
from flows.cluster.ray_session import gpus_per_worker, start, stop
from flows.cluster.train_loop import Task, fit
from flows.shutdown import saved, told_to_end

__all__ = ["fitting_at_once", "on_ray", "run_stage", "start", "stop"]
# What a worker is given of the environment.
CARRIED = ("CUBLAS_", "GOMP_", "HF_", "RLHF_", "TOKENIZERS_", "TQDM_", "TRANSFORMERS_", "TRL_")


def on_ray(resources: Resources, settings: StageSettings) -> bool:
    """Whether a stage runs on Ray: several workers do it, or a cluster does. Other stages run in this process."""
    if resources.vllm is not None and settings.spec.samples and not trains_together(settings):
        return False  # the server's GPUs do all of the work
    on_cluster = resources.address is not None and settings.can_be_shared()
    return workers_of(resources, settings) > 1 or settings.rollout_processes() > 0 or on_cluster


def run_stage(module: str, settings: StageSettings, context: StageContext) -> StageResult:
    """Runs a stage (``run`` of ``module``) where its recipe says.

    Raises StageError where workers died too often, stood still, or found that the work cannot be done.
    """
    if not on_ray(context.run.resources, settings):
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


def _here(module: str, settings: StageSettings, context: StageContext) -> StageResult:
    import torch

    started = time.perf_counter()
    context.preempted, context.saved = told_to_end, saved
    with naming_what_ran_out(context.name, settings):
        result: StageResult = importlib.import_module(module).run(settings, context)
    if torch.cuda.is_available() and context.run.resources.device != "cpu":
        context.gpu_seconds = time.perf_counter() - started
    return result


def _together(
    module: str, settings: StageSettings, context: StageContext, home: Path, environment: dict[str, str]
) -> StageResult:
    resources = context.run.resources
    workers = workers_of(resources, settings)
    rollouts = settings.rollout_processes()
    start(resources, workers + rollouts)
    started = time.perf_counter()
    result, seconds = fit(Task(module, settings, context, home, environment))
    context.work_seconds += seconds
    context.gpu_seconds = (time.perf_counter() - started) * (workers + rollouts) * gpus_per_worker(resources)
    context.cpu_seconds += sum(float(path.read_text()) for path in home.glob("usage/*"))
    return result
