"""A Ray to run on: the cluster's, or one of this machine; and what each worker asks it for."""

import logging
import os
import signal
import threading
from typing import Any

from alignment.recipe.resources import Resources
from flows.cluster.cleanup import release_all

SETTINGS = {  # what Ray reads when it is imported
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a dead worker is noticed so much later
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # a worker is the stage, no background work: at Ray's 15 a busy machine starves it
    "RAY_agent_register_timeout_ms": "120000",  # a busy machine takes its time; Ray ends with a failed check at 15 s
}


def on_this_machine(resources: Resources) -> bool:
    """Whether Ray is one of our own here, and not a cluster's."""
    return resources.address in (None, "local")


def cpus_per_worker(resources: Resources) -> int:
    """The cores that a worker asks Ray for: its threads, or one."""
    return resources.threads or 1


def gpus_per_worker(resources: Resources) -> float:
    """The GPUs that a worker asks Ray for."""
    if resources.device == "cpu":
        return 0
    if resources.gpus_per_worker is not None:
        return resources.gpus_per_worker
    import ray

    return 1 if resources.device == "cuda" or ray.cluster_resources().get("GPU", 0) > 0 else 0


def resources_per_worker(resources: Resources) -> dict[str, float]:
    """What a worker asks Ray for, by Ray's names."""
    gpus = gpus_per_worker(resources)
    return {"CPU": cpus_per_worker(resources)} | ({"GPU": gpus} if gpus else {})


def actor_options(resources: Resources) -> dict[str, Any]:
    """The same for an actor, which lives on whatever node has room, and is started again when it dies."""
    failures = resources.max_failures
    return {
        "num_cpus": cpus_per_worker(resources),
        "num_gpus": gpus_per_worker(resources),
        "max_restarts": failures,
        "max_task_retries": failures,
        "scheduling_strategy": "DEFAULT",  # not in the bundle of who makes it
    }


def start(resources: Resources, workers: int) -> None:
    """Joins the cluster, or starts a Ray here that later stages of this process find again."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    # Twice as many as are asked for: those who train and those who sample wait here for their next stage side by side.
    cpus = max(os.cpu_count() or 1, 2 * workers * cpus_per_worker(resources))
    if ray.is_initialized():
        if not on_this_machine(resources) or ray.cluster_resources().get("CPU", 0) >= cpus:
            return
        stop()  # ours, and made for fewer workers
    hears = signal.getsignal(signal.SIGTERM)
    try:
        _begin(resources, cpus)
    finally:
        if hears is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, hears)  # Ray takes it for itself


def _begin(resources: Resources, cpus: int) -> None:
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Nobody takes this machine back.
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0" if on_this_machine(resources) else "1"
    if not on_this_machine(resources):
        ray.init(address=resources.address, **options)
        return
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=2**28, **options)


def cluster_here() -> str | None:
    """The address, host:port, that ``auto`` stands for on this machine; None where it is in no cluster."""
    from ray._private.services import canonicalize_bootstrap_address  # as `ray.init(address="auto")` does

    try:
        address: str | None = canonicalize_bootstrap_address("auto")
    except ConnectionError:
        return None
    return address


def stop() -> None:
    """Ends everything of ours on Ray, and a Ray of our own."""
    import ray

    if ray.is_initialized():
        release_all()
    ray.shutdown()
