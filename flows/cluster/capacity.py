"""How many runs there is room for at once."""

from alignment.recipe.resources import Resources
from flows.cluster.ray_session import on_this_machine, resources_per_worker, start, stop


def fitting_at_once(resources: Resources) -> int:
    """Runs that fit beside each other, at least 1: as often as a run's workers fit the cluster, or this machine's GPUs.

    On a processor it is one: all of its cores work for a stage already.
    """
    if not on_this_machine(resources):
        return _in_cluster(resources)
    from alignment.models.device import pick_device

    if pick_device(resources).type != "cuda":
        return 1
    import torch

    each = resources.workers * (1.0 if resources.gpus_per_worker is None else resources.gpus_per_worker)
    return max(1, int(torch.cuda.device_count() / max(each, 1e-9)) if each else 1)


def _in_cluster(resources: Resources) -> int:
    import ray

    start(resources, resources.workers)
    try:
        room = ray.cluster_resources()
        wanted = resources_per_worker(resources)
        fits = [room.get(name, 0.0) / (amount * resources.workers) for name, amount in wanted.items() if amount]
        return max(1, int(min(fits, default=1.0)))
    finally:
        stop()
