"""``rlhf rate`` and ``rlhf votes``: the raters' app, and what goes into and comes out of its store."""

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from rich.console import Console

from alignment.faults import Fault, InputError
from alignment.workspace import Workspace
from flows import services
from flows.commands import prepare

if TYPE_CHECKING:
    from preference_ui.exchange import Filter
Chosen: TypeAlias = tuple[list[str], datetime | None, datetime | None, float, str | None]


def rate_command(
    workspace: Path,
    url: str | None,
    host: str,
    port: int,
    public_url: str | None,
    arena: tuple[str, str] | None,
    temperature: float,
    max_new_tokens: int,
) -> None:
    """Serves the raters' app until it is stopped, and says on the run's Prefect server when votes are enough.

    ``arena`` names two versions that people may talk to; they answer in this process.
    """
    space = Workspace(workspace.resolve())
    services.quiet_environment(space)
    server = services.begin(space, "prefect")  # raters need not wait for it: what cannot be said is said again
    os.environ["PREFECT_API_URL"] = server.api
    from flows import collect
    from preference_ui.app import serve

    where, contestants = collect.store_url(space, url), []
    if arena is not None:
        from alignment.records import Sampling
        from flows import arena as ring

        sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)
        contestants = ring.contestants(arena, space, sampling)
    serve(where, host=host, port=port, public_url=public_url, snapshots=collect.snapshots(space),
          contestants=contestants)  # fmt: skip


def deploy_command(
    given: str,
    workspace: Path,
    overrides: list[str],
    *,
    cron: str | None,
    every: float | None,
    limits: list[str],
) -> None:
    """Serves a recipe: runs it on a schedule, after events, and whenever its raters' votes are ready.

    ``cron`` and ``every`` take the place of the recipe's own schedule; each of ``limits`` is ``name=slots``.
    """
    wanted = _limits(limits)
    clock = [f"deployment.cron={json.dumps(cron)}", "deployment.every=null"] if cron is not None else []
    clock += [f"deployment.every={every}", "deployment.cron=null"] if every is not None else []
    recipe, path = prepare(given, [*overrides, *clock])
    space = Workspace(workspace.resolve())
    services.quiet_environment(space)
    services.reach_named_servers(space)
    said = Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print
    server = services.wait(space, services.begin(space, "prefect"), said)
    os.environ["PREFECT_API_URL"] = server.api
    from flows.deployments import serve_recipe
    from flows.launch import checked
    from flows.slots import limit_faults, set_limits

    checked(recipe, path, space)
    set_limits(wanted)
    if faults := limit_faults(recipe):
        raise InputError(faults)
    Console().print(f"serving {recipe.name}; its runs are at {server.url}", highlight=False, soft_wrap=True)
    serve_recipe(str(path.resolve()), recipe, space, overrides, recipe.deployment)


def _limits(given: list[str]) -> dict[str, int]:
    """Limits of the command line, by name. Raises InputError with every one that is none."""
    found = [(one, re.fullmatch(r"([a-z][a-z0-9_-]{0,39})=(\d{1,5})", one)) for one in given]
    if wrong := [one for one, match in found if match is None]:
        raise InputError([Fault(f"{one!r} is no limit", "write --limit gpus=4", field="--limit") for one in wrong])
    return {match[1]: int(match[2]) for _one, match in found if match}


def _store_url(workspace: Path, url: str | None) -> str:
    from flows.collect import store_url

    return store_url(Workspace(workspace.resolve()), url)


def votes_import_command(workspace: Path, url: str | None, file: Path, votes_wanted: int, *, gold: bool) -> None:
    """Queues a file's comparisons for the raters."""
    services.quiet_environment(Workspace(workspace.resolve()))
    from preference_ui.exchange import import_comparisons
    from preference_ui.store import Store

    new = import_comparisons(Store.open(_store_url(workspace, url)), file, votes_wanted=votes_wanted, gold=gold)
    Console().print(f"{new} new comparisons", highlight=False)


def votes_export_command(
    workspace: Path,
    url: str | None,
    file: Path,
    what: Literal["pairs", "votes", "demonstrations", "arena", "arena_pairs"],
    form: Literal["messages", "text"],
    chosen: Chosen,
    *,
    as_json: bool,
) -> None:
    """Writes preference pairs, votes, corrections or the arena's talks to a file, and says their digest.

    ``chosen`` are raters, from when, until when, the least agreement, and the queue.
    """
    services.quiet_environment(Workspace(workspace.resolve()))
    from preference_ui.arena_votes import export_talks
    from preference_ui.exchange import export_votes
    from preference_ui.store import Store

    store = Store.open(_store_url(workspace, url))
    if what == "arena" or what == "arena_pairs":
        export = export_talks(store, file, pairs=what == "arena_pairs", chosen=_filter(chosen))
    else:
        export = export_votes(store, file, what=what, form=form, chosen=_filter(chosen))
    if as_json:
        print(export.model_dump_json(indent=2))
    else:
        said = f"{export.rows} rows of {export.votes} votes by {export.raters} raters, digest {export.digest[:12]}"
        Console().print(f"{export.path}: {said}", highlight=False, soft_wrap=True)


def _filter(chosen: Chosen) -> "Filter":
    from preference_ui.exchange import Filter

    raters, since, until, least, queue = chosen
    start, end = (moment and moment.replace(tzinfo=moment.tzinfo or UTC) for moment in (since, until))
    return Filter(raters=tuple(raters), since=start, until=end, min_agreement=least, queue=queue)


def votes_agreement_command(workspace: Path, url: str | None, chosen: Chosen, *, as_json: bool) -> None:
    """How far the raters agree, with 95 % intervals."""
    services.quiet_environment(Workspace(workspace.resolve()))
    from preference_ui.exchange import agreement
    from preference_ui.store import Store

    figures = agreement(Store.open(_store_url(workspace, url)), chosen=_filter(chosen))
    if as_json:
        print(json.dumps([figure.model_dump(mode="json") for figure in figures], indent=2))
        return
    console = Console(highlight=False)
    for figure in figures:
        value = "undefined" if figure.value is None else f"{figure.value:.3f}"
        interval = "" if figure.low is None else f"  [{figure.low:.3f}, {figure.high:.3f}]"
        console.print(f"{figure.of:<14} {figure.statistic:<20} {value}{interval}  ({figure.units} units)", markup=False)
