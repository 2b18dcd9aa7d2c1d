"""The servers that a recipe and the environment name, asked before a run trains anything."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from alignment.checks.judges import endpoint_places
from alignment.checks.recipe import placed
from alignment.errors import Fault, InputError
from alignment.recipe.recipe import Recipe
from alignment.recipe.resolved import ResolvedRecipe
from alignment.workspace import Workspace
from flows.cluster.ray_session import cluster_here
from flows.services.named_servers import named_by_environment
from flows.services.probes import NamedServer, RefusalError, faults_of, http_server, ray_cluster

CHANGE = "start that server, or change the address"
RAY_ADDRESS = "RAY_ADDRESS"  # which Ray takes where it is told `auto`


def _no_cluster() -> None:
    raise RefusalError("no Ray cluster runs on this machine", f"start one (`ray start --head`), or set {RAY_ADDRESS}")


NO_CLUSTER = NamedServer("the Ray cluster", "auto", "resources.address", CHANGE, _no_cluster)


@dataclass(frozen=True, slots=True)
class StageServer:
    """A server that a stage needs where it is not in the cache."""

    stage: str
    server: NamedServer


def server_faults(
    resolved: ResolvedRecipe,
    workspace: Workspace,
    *,
    only: str | None = None,
    start: str | None = None,
    refresh: Sequence[str] = (),
    environment: bool = True,
) -> list[Fault]:
    """The faults of all servers that a run would need and that are not there, asked at the same time.

    What the environment names is asked always, unless ``environment`` is false; what the recipe names for a stage,
    where the stage is to be made: ``only``, ``start`` and ``refresh`` are a run's, and the cache needs no server.
    """
    try:
        named, faults = named_by_environment(workspace) if environment else [], []
    except InputError as error:
        named, faults = [], list(error.faults)
    wanted = _wanted(resolved.recipe, only, start)
    needed = [one for one in stage_servers(resolved.recipe) if one.stage in wanted]
    servers = {one.server.address: one.server for one in reversed(needed)}  # each by the first field that names it
    asked = [*named, *reversed(servers.values())]
    missing = [(server, fault) for server, fault in zip(asked, faults_of(asked), strict=True) if fault is not None]
    faults += [fault for server, fault in missing if server in named]
    if silent := {server.address for server, _fault in missing if server not in named}:
        made = _made(resolved, workspace) - set(refresh)
        left = [one for one in needed if one.server.address in silent and one.stage not in made]
        fields = {one.server.address: one.server.field for one in reversed(left)}
        told = [replace(fault, field=fields[server.address]) for server, fault in missing if server.address in fields]
        faults += [fault if fault.field == RAY_ADDRESS else placed([fault], resolved.path)[0] for fault in told]
    return faults


def stage_servers(recipe: Recipe) -> Iterator[StageServer]:
    """Every server that a recipe names, for each stage that needs it, in the order of the stages."""
    resources = recipe.resources
    for name, stage in recipe.stages.items():
        if resources.vllm is not None and stage.spec.samples:
            url = resources.vllm.url.rstrip("/") + "/v1/models"
            server = http_server("the vLLM server", url, "resources.vllm.url", CHANGE, strict=False)
            yield StageServer(name, server)
        if resources.address not in (None, "local") and stage.can_be_shared():
            yield StageServer(name, _ray(str(resources.address)))
        for at, endpoint in endpoint_places(name, stage):
            url = endpoint.url.rstrip("/") + "/models"
            yield StageServer(name, http_server("the endpoint", url, f"{at}.url", CHANGE, strict=False))


def _ray(address: str) -> NamedServer:
    if address != "auto":
        return ray_cluster(address, "resources.address")
    if named := os.environ.get(RAY_ADDRESS):
        return ray_cluster(named, RAY_ADDRESS)
    found = cluster_here()
    return NO_CLUSTER if found is None else ray_cluster(found, "resources.address")


def _wanted(recipe: Recipe, only: str | None, start: str | None) -> set[str]:
    stages = list(recipe.stages)
    if only is not None:
        return {only}
    return set(stages[stages.index(start) :] if start in stages else stages)


def _made(resolved: ResolvedRecipe, workspace: Workspace) -> set[str]:
    """The stages that the cache answers; none where that cannot be told of a recipe that no check has passed yet."""
    from flows.pipeline.cached_stages import cached_stages

    try:
        return {name for name, found in cached_stages(resolved, workspace).items() if found.state == "cached"}
    except Exception:
        return set()
