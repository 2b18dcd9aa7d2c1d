"""``rlhf rate`` and ``rlhf votes``: the raters' app, and what goes into and comes out of its store."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, TypeAlias

from alignment.errors import Fault, InputError
from flows.console import PlainConsole, print_json
from flows.failures import open_workspace
from flows.services import servers
from flows.services.hub_repository import upload_folder
from flows.services.named_servers import require_store
from preference_ui.hub_rows import HUB_PREFIX, download_rows, require_repository

if TYPE_CHECKING:
    from preference_ui.import_export import Filter
Chosen: TypeAlias = tuple[list[str], datetime | None, datetime | None, float, str | None]


def _store_url(workspace: Path, url: str | None) -> str:
    from flows.pipeline.human_votes import store_url

    require_store(url)
    return store_url(open_workspace(workspace), url)


def votes_import_command(
    workspace: Path,
    url: str | None,
    named: str,
    votes_wanted: int | None,
    *,
    queue: str,
    gold: bool,
    revision: str | None,
) -> None:
    """Queues the comparisons of a file, or of a hub's data set, for the raters."""
    servers.quiet_environment(open_workspace(workspace))
    from preference_ui.importing import import_comparisons
    from preference_ui.store.store import Store

    store = Store.open(_store_url(workspace, url))
    with _rows_of(named, revision) as file:
        found = import_comparisons(store, file, votes_wanted=votes_wanted, queue=queue, gold=gold,
                                   progress=_progress())  # fmt: skip
    parts = [f"{found.new} new comparisons"]
    parts += [f"{found.repeated} repeat an earlier row"] if found.repeated else []
    parts += [f"{found.known} were queued before"] if found.known else []
    parts += [f"of these {found.turned} are gold now"] if found.turned else []
    parts += [f"{found.kept} stay as they are, because raters have had them"] if found.kept else []
    parts += [f"{count} left out: {why}" for why, count in sorted(found.left_out.items())]
    PlainConsole().print(f"{found.rows} rows: {', '.join(parts)}")


@contextmanager
def _rows_of(named: str, revision: str | None) -> Iterator[Path]:
    """The file that is named, or a hub's, for as long as it is read."""
    if not named.startswith(HUB_PREFIX):
        if revision is not None:
            raise InputError([Fault("a file has no revision", "leave it out", field="--revision")])
        yield Path(named)
        return
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield download_rows(named.removeprefix(HUB_PREFIX), revision, Path(folder))


def _progress() -> Callable[[str, int], None]:
    """Says on stderr how far an import is: on one line in a terminal, else a line each ten thousand rows."""
    console = PlainConsole(stderr=True)

    def tell(what: str, rows: int) -> None:
        if console.is_terminal:
            console.print(f"\r{rows:,} rows {what}", end="")
        elif rows % 10_000 == 0:
            console.print(f"{rows:,} rows {what}")

    return tell


def votes_export_command(
    workspace: Path,
    url: str | None,
    file: Path,
    what: Literal["pairs", "thumbs", "votes", "demonstrations", "records", "arena", "arena_pairs"],
    form: Literal["messages", "text"],
    chosen: Chosen,
    *,
    as_json: bool,
    hub: str | None,
    public: bool,
) -> None:
    """Writes preference pairs, votes, corrections or the arena's talks to a file, or whole records to a folder, and
    says their digest. With ``hub`` what was written goes to that data set as well.

    ``chosen`` are raters, from when, until when, the least agreement, and the queue.
    """
    if hub is not None:
        require_repository(hub, "--hub")
    elif public:
        raise InputError([Fault("what is written here is neither public nor private", "add --hub", field="--public")])
    servers.quiet_environment(open_workspace(workspace))
    from preference_ui.arena.votes import export_talks
    from preference_ui.import_export import Export, export_votes
    from preference_ui.quality.record_export import RecordExport, export_records
    from preference_ui.store.store import Store

    if what == "records" and form != "messages":
        raise InputError([Fault("records are written as they are stored", "leave --form out", field="--form")])
    store = Store.open(_store_url(workspace, url))
    export: Export | RecordExport
    if what == "records":
        export = export_records(store, file, _filter(chosen))
    elif what == "arena" or what == "arena_pairs":
        export = export_talks(store, file, pairs=what == "arena_pairs", chosen=_filter(chosen))
    else:
        export = export_votes(store, file, what=what, form=form, chosen=_filter(chosen))
    if hub is not None:
        _to_hub(Path(export.path), hub, f"{what}, digest {export.digest[:12]}", public=public)
    if as_json:
        print_json(export.model_dump_json(indent=2))
    else:
        said = f"{export.rows} rows of {export.votes} votes by {export.raters} raters, digest {export.digest[:12]}"
        PlainConsole().print(f"{export.path}: {said}")
        if hub is not None:
            PlainConsole().print(f"pushed to {hub}")


def _to_hub(written: Path, hub: str, words: str, *, public: bool) -> None:
    """A folder as it is; a file in one of its own."""
    if written.is_dir():
        upload_folder(written, hub, words, public=public, kind="dataset")
        return
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        shutil.copy(written, folder)
        upload_folder(Path(folder), hub, words, public=public, kind="dataset")


def _filter(chosen: Chosen) -> "Filter":
    from preference_ui.import_export import Filter

    raters, since, until, least, queue = chosen
    start, end = (moment and moment.replace(tzinfo=moment.tzinfo or UTC) for moment in (since, until))
    return Filter(raters=tuple(raters), since=start, until=end, min_agreement=least, queue=queue)


def votes_agreement_command(workspace: Path, url: str | None, chosen: Chosen, *, as_json: bool) -> None:
    """How far the raters agree, with 95 % intervals."""
    servers.quiet_environment(open_workspace(workspace))
    from preference_ui.import_export import agreement
    from preference_ui.store.store import Store

    figures = agreement(Store.open(_store_url(workspace, url)), chosen=_filter(chosen))
    if as_json:
        print(json.dumps([figure.model_dump(mode="json") for figure in figures], indent=2))
        return
    console = PlainConsole()
    for figure in figures:
        value = "undefined" if figure.value is None else f"{figure.value:.3f}"
        interval = "" if figure.low is None else f"  [{figure.low:.3f}, {figure.high:.3f}]"
        console.print(f"{figure.of:<14} {figure.statistic:<20} {value}{interval}  ({figure.units} units)")
