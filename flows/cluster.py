"""Where a stage runs: in this process, on a Ray of this machine, or on a cluster by its address.

One worker without an address needs no Ray, and none is started. Else every worker runs the stage's own function, with
its rank in the context: Ray Train starts the workers, joins them in a process group (nccl on GPUs, gloo elsewhere) and
starts them again when one dies; the trainer goes on from the stage's last checkpoint, so the result is the same. What
workers and driver tell each other are files below the stage's folder: the workspace has to be on storage that all of
them see. This is the only module that imports Ray.
"""

import contextvars
import importlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignment.faults import Fault, InputError, StageError
from alignment.recipe import Recipe, workers_of
from alignment.stage import Progress, StageContext, StageResult
from alignment.workspace import write_text

_log = logging.getLogger(__name__)
POLL_SECONDS = 0.2
DUMP_SECONDS = 60
CARRIED = ("HF_", "TOKENIZERS_", "TRANSFORMERS_", "TRL_", "TQDM_", "GOMP_", "RLHF_")  # environment a worker is given
SETTINGS = {  # what Ray reads when it is imported
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a finished stage is noticed so much later
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "900",  # a cluster may have to grow first
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_agent_register_timeout_ms": "120000",  # a busy machine takes its time; Ray ends with a failed check at 15 s
}
# Errors that the same work would make again. A lost connection is a RuntimeError, and is what a worker's death looks
# like to the others.
FINAL = (StageError, InputError, ArithmeticError, LookupError, ValueError, TypeError, AttributeError, AssertionError)


def on_ray(recipe: Recipe, settings: Any) -> bool:
    """Whether a stage runs on Ray: it trains, on several workers or on a cluster. Other stages run in this process."""
    return workers_of(recipe, settings) > 1 or (recipe.resources.address is not None and hasattr(settings, "workers"))


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
    config = {
        "module": module,
        "settings": settings,
        "context": replace(context, report=_silent),  # the driver's own does not travel
        "home": str(home),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(CARRIED)},
    }
    workers = workers_of(context.recipe, settings)
    start(context.recipe, workers)
    started = time.perf_counter()
    result, seconds = _fit(config, context, workers, Watch(home, context))
    context.work_seconds += seconds
    context.gpu_seconds = (time.perf_counter() - started) * workers * gpus_per_worker(context.recipe)
    context.cpu_seconds += sum(float(path.read_text()) for path in home.glob("usage/*"))
    return result


def _here(module: str, settings: Any, context: StageContext) -> StageResult:
    import torch

    started = time.perf_counter()
    result: StageResult = importlib.import_module(module).run(settings, context)
    if torch.cuda.is_available() and context.recipe.resources.device != "cpu":
        context.gpu_seconds = time.perf_counter() - started
    return result


def _silent(_progress: Progress) -> None:
    """Hears nothing."""


def cpus_per_worker(recipe: Recipe) -> int:
    """The cores that a worker asks Ray for: its threads, or one."""
    return recipe.resources.threads or 1


def gpus_per_worker(recipe: Recipe) -> float:
    """The GPUs that a worker asks Ray for."""
    resources = recipe.resources
    if resources.device == "cpu":
        return 0
    if resources.gpus_per_worker is not None:
        return resources.gpus_per_worker
    import ray

    return 1 if resources.device == "cuda" or ray.cluster_resources().get("GPU", 0) > 0 else 0


def start(recipe: Recipe, workers: int) -> None:
    """Joins the cluster, or starts a Ray here that later stages of this process find again."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if recipe.resources.address is not None:
        ray.init(address=recipe.resources.address, **options)
        return
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine back
    cpus = max(os.cpu_count() or 1, workers * cpus_per_worker(recipe))
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=2**28, **options)


def _fit(config: dict[str, Any], context: StageContext, workers: int, watch: "Watch") -> tuple[StageResult, float]:
    """Ray Train on the workers. Returns rank 0's result, and the seconds that it was at work."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):  # type: ignore[misc]  # Ray is untyped here
        """Hands its controller to whoever may have to end the run; Ctrl-C stays the caller's."""

        def _register_sigint_handler(self, controller: Any) -> None:
            watch.controller = controller

    recipe = context.recipe
    gpus = gpus_per_worker(recipe)
    trainer = Trainer(
        _work,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cpus_per_worker(recipe)} | ({"GPU": gpus} if gpus else {}),
        ),
        run_config=RunConfig(
            name=context.name,
            storage_path=str(watch.home / "train"),
            failure_config=FailureConfig(max_failures=recipe.resources.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    with watch.watching():
        try:
            result, seconds = trainer.fit().return_value
        except Exception as error:
            raise watch.reason(error) from error
        except BaseException:  # Ctrl-C
            watch.abort()
            raise
    return result, seconds


def _work(config: dict[str, Any]) -> tuple[StageResult, float]:
    """What each worker runs: the stage itself, in its own process. Rank 0 alone writes and reports."""
    os.environ.update(config["environment"])
    import ray
    import ray.train
    import torch

    place, home = ray.train.get_context(), Path(config["home"])
    rank = place.get_world_rank()
    who = {"pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}
    write_text(home / "workers" / f"{rank}.json", json.dumps(who))
    context: StageContext = replace(config["context"], rank=rank, workers=place.get_world_size())
    if threads := context.recipe.resources.threads:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="rlhf-") as scratch:
        if rank == 0:
            shutil.rmtree(context.output, ignore_errors=True)  # what a dead worker had half written
            context.output.mkdir(parents=True)
            context.report = _to_file(home / "progress.jsonl")
        else:
            context.output = Path(scratch)
        try:
            result = importlib.import_module(config["module"]).run(config["settings"], context)
        except FINAL as error:
            words = str(error) if isinstance(error, StageError | InputError) else traceback.format_exc()
            write_text(home / "failed.txt", words)
            raise
    write_text(home / "usage" / f"{rank}-{os.getpid()}", str(time.process_time()))
    return result, context.work_seconds


def _to_file(path: Path) -> Any:
    def report(progress: Progress) -> None:
        row = {"step": progress.step, "total": progress.total, "tokens": progress.tokens}
        with path.open("a") as file:
            file.write(json.dumps(row | {"metrics": dict(progress.metrics)}) + "\n")

    return report


@dataclass
class Watch:
    """Reads what the workers write: passes their progress on, and ends a run that fails for good or stands still."""

    home: Path
    context: StageContext
    controller: Any = None
    ended: StageError | None = None  # why this watch ended the run
    _read: int = 0  # bytes of the progress file

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches from a thread of its own for as long as the context lasts; Prefect's context goes with it."""
        done = threading.Event()
        thread = threading.Thread(target=contextvars.copy_context().run, args=(self._loop, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._pass_on()

    def _loop(self, done: threading.Event) -> None:
        seen, since = "", time.monotonic()
        while not done.wait(POLL_SECONDS) and self.ended is None:
            try:
                self._pass_on()
            except Exception as error:  # a dashboard that is away must not end the watch
                _log.warning("%s: its progress was not passed on: %s", self.context.name, error)
            if (now := self._signs()) != seen:
                seen, since = now, time.monotonic()
            failed = self.home / "failed.txt"
            if failed.exists():
                self._end(failed.read_text("utf-8"))
            elif time.monotonic() - since > self.context.recipe.resources.stall_seconds:
                self._end(self._stalled())

    def _signs(self) -> str:
        """What changes as long as something happens: workers come, steps are made."""
        files = [self.home / "progress.jsonl", *sorted(self.home.glob("workers/*")), *sorted(self.home.glob("usage/*"))]
        return " ".join(f"{path.name}{path.stat().st_mtime_ns}" for path in files if path.exists())

    def _pass_on(self) -> None:
        path = self.home / "progress.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            self.context.report(Progress(**json.loads(line)))

    def _stalled(self) -> str:
        """Writes the stacks of all workers into the log and beside the checkpoints; what is to be said of it."""
        parts = []
        for path in sorted(self.home.glob("workers/*.json")):
            who = json.loads(path.read_text("utf-8"))
            parts.append(f"worker {path.stem}, process {who['pid']}:\n{stacks(who['pid'], who['node'])}")
        text = "\n".join(parts) or "no worker had started: the cluster may lack the resources that were asked for"
        kept = self.context.checkpoints.parent / "stacks.txt"
        write_text(kept, text + "\n")
        seconds = self.context.recipe.resources.stall_seconds
        _log.error("%s: no step in %g s; the stacks of its workers:\n%s", self.context.name, seconds, text)
        return f"{self.context.name}: no step in {seconds:g} s (resources.stall_seconds); stacks are in {kept}"

    def _end(self, words: str) -> None:
        self.ended = StageError(words)
        self.abort()

    def abort(self) -> None:
        """Ends the run and its workers."""
        import ray

        if self.controller is None:  # outside the main thread Ray does not name it; without us all of ours ends
            ray.shutdown()
            return
        try:
            ray.get(self.controller.abort.remote(), timeout=30)
        except ray.exceptions.RayActorError:
            pass  # it has gone, as it should
        except ray.exceptions.RayError as error:
            _log.warning("%s: its controller did not answer (%s) and is killed", self.context.name, error)
            ray.kill(self.controller)

    def reason(self, error: Exception) -> StageError:
        """Why the run ended with ``error``."""
        failed = self.home / "failed.txt"
        if self.ended is None and failed.exists():
            return StageError(failed.read_text("utf-8"))
        return self.ended or StageError(f"{self.context.name}: its workers failed too often; the last time: {error}")


def stacks(process: int, node: str) -> str:
    """The stacks of a process's threads, asked for on its node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if node == ray.get_runtime_context().get_node_id():
        return _dump(process)
    where = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    remote = ray.remote(num_cpus=0, scheduling_strategy=where)(_dump)
    try:
        return str(ray.get(remote.remote(process), timeout=DUMP_SECONDS))
    except ray.exceptions.RayError as error:
        return f"its node does not answer: {error}"


def _dump(process: int) -> str:
    command = shutil.which("py-spy") or str(Path(sys.executable).with_name("py-spy"))
    try:
        ended = subprocess.run(
            [command, "dump", "--pid", str(process)], capture_output=True, text=True, timeout=DUMP_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no stacks: {error}"
    return ended.stdout or f"no stacks: {ended.stderr.strip()}"
