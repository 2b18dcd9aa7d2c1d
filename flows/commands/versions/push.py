"""``rlhf push``: a version's files to a folder or to a hub, after a look at what would leave."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.errors import Fault, InputError
from alignment.workspace import Workspace
from flows.console import PlainConsole, print_json
from flows.failures import open_workspace
from flows.services import servers
from flows.services.hub_repository import upload_folder
from flows.services.named_servers import require_named
from preference_ui.hub_rows import require_repository

if TYPE_CHECKING:
    from alignment.registry import RegisteredVersion
    from alignment.registry.publication import Publication


def push_command(
    reference: str,
    workspace: Path,
    folder: Path | None,
    hub: str | None,
    *,
    merged: bool,
    public: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Lists what would be pushed; with ``yes`` pushes it. Raises InputError before anything is copied."""
    _require_destination(folder, hub, public=public)
    space = open_workspace(workspace)
    servers.quiet_environment(space)
    require_named(space, "mlflow")
    from alignment.registry import find

    version = find(space, reference)
    if merged and not (Path(version.folder) / "adapter_config.json").exists():
        raise InputError([Fault(f"{version} is no adapter: it has nothing to merge", "leave out --merged")])
    with _staged(space, version, folder, merged=merged) as publication:
        _list(publication, str(version), str(folder or hub), as_json=as_json, pushed=yes)
        if not yes:
            return
        if folder is not None:
            _to_folder(publication, folder)
        else:
            assert hub is not None
            upload_folder(publication.folder, hub, f"{version}", public=public)
    if not as_json:
        PlainConsole().print(f"pushed to {folder or hub}")


def _require_destination(folder: Path | None, hub: str | None, *, public: bool) -> None:
    if (folder is None) == (hub is None):
        raise InputError([Fault("one place to push to is needed", "give a folder, or --hub ORGANISATION/NAME")])
    if folder is not None:
        if public:
            raise InputError([Fault("a folder is neither public nor private", "leave out --public", field="--public")])
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            problem = "is there already, and not empty" if folder.is_dir() else "is a file"
            raise InputError([Fault(problem, "give a new folder", file=str(folder))])
        return
    require_repository(str(hub), "--hub")


@contextmanager
def _staged(
    space: Workspace, version: "RegisteredVersion", folder: Path | None, *, merged: bool
) -> Iterator["Publication"]:
    """The files as they would leave, in a folder that is removed afterwards: beside the destination, if it is one."""
    from alignment.registry.publication import prepare
    from flows.services.model_version import export_plain

    if folder is not None:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    home = folder.absolute().parent if folder is not None else space.folder("partial")
    with tempfile.TemporaryDirectory(dir=home, prefix=".push-", suffix=".tmp", ignore_cleanup_errors=True) as scratch:
        target = Path(scratch) / "files"
        yield prepare(
            space, version, target, (lambda place: export_plain(version.folder, space, place)) if merged else None
        )


def _list(publication: "Publication", version: str, where: str, *, as_json: bool, pushed: bool) -> None:
    if as_json:
        print_json(
            json.dumps(
                {"version": version, "to": where, "pushed": pushed, "files": dict(publication.files),
                 "left_out": dict(publication.left_out)}, indent=2,
            )
        )  # fmt: skip
        return
    console = PlainConsole()
    for name, size in publication.files.items():
        console.print(f"{size:>14,}  {name}")
    console.print(f"{sum(publication.files.values()):>14,}  bytes in {len(publication.files)} files of {version}")
    for name, why in publication.left_out.items():
        console.print(f"      left out  {name}: {why}")
    if not pushed:
        console.print(f"nothing was pushed; --yes pushes this to {where}")


def _to_folder(publication: "Publication", folder: Path) -> None:
    """The folder is there whole, or not at all."""
    from alignment.durable_files import rename_synced

    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()  # empty, as was seen
    rename_synced(publication.folder, folder)
