"""`rlhf backup`, `rlhf restore` and `rlhf gc`."""

import json
from collections.abc import Sequence
from pathlib import Path

from alignment.errors import Fault, InputError
from alignment.workspace import Workspace
from flows.backups.archive import restore_backup, write_backup
from flows.backups.waste import Waste, waste
from flows.backups.waste import remove as remove_waste
from flows.console import PlainConsole


def backup_command(
    workspace: Path, target: Path, *, as_json: bool, store: str | None = None, without: Sequence[str] = ()
) -> None:
    """Writes a workspace into one file, whole or not at all. Databases are copied as of one moment, also in use.

    The raters' votes come from ``store`` (or ``RLHF_STORE``), wherever that is. ``without`` names parts (votes,
    prefect, mlflow) that are left out. Raises InputError where a part is on a server that cannot be copied from here.
    """
    files = write_backup(_existing(workspace), target, store=store, without=without)
    said: dict[str, object] = {"file": str(target), "files": files, "bytes": target.stat().st_size}
    _say(said | ({"without": ", ".join(without)} if without else {}), as_json)


def restore_command(source: Path, workspace: Path, *, as_json: bool, store: str | None = None) -> None:
    """Makes a workspace from a backup, whole or not at all; every file is held against its digest first.

    Where ``store`` (or ``RLHF_STORE``) names a database of its own, the votes go there: it has to be empty.
    """
    files, rows = restore_backup(source, workspace, store=store)
    said: dict[str, object] = {"workspace": str(workspace), "files": files}
    _say(said | ({"votes": rows["votes"], "rows": sum(rows.values())} if rows is not None else {}), as_json)


def gc_command(workspace: Path, *, runs: int, days: float, remove: bool, as_json: bool) -> None:
    """Lists, and with ``remove`` removes, artifacts and unfinished stages that nothing refers to."""
    space = Workspace(_existing(workspace))
    found = list(waste(space, runs=runs, days=days))
    if remove:
        found = [one for one in found if remove_waste(space, one, runs)]
    total = sum(one.bytes for one in found)
    if as_json:
        print(json.dumps({"removed": remove, "bytes": total, "found": [_row(one) for one in found]}, indent=2))
        return
    console = PlainConsole()
    for one in found:
        console.print(f"{one.bytes / 1e6:>10.1f} MB  {one.path}: {one.why}")
    words = "removed" if remove else "to be removed by the same command with --yes"
    console.print(f"{total / 1e6:.1f} MB in {len(found)} folders {words}" if found else "nothing to remove")


def _row(one: Waste) -> dict[str, object]:
    return {"path": one.path, "bytes": one.bytes, "why": one.why}


def _existing(workspace: Path) -> Path:
    if not workspace.is_dir():
        raise InputError([Fault("no such workspace", "name one with --workspace", file=str(workspace))])
    return workspace.resolve()


def _say(values: dict[str, object], as_json: bool) -> None:
    if as_json:
        print(json.dumps(values))
    else:
        PlainConsole().print(", ".join(f"{name} {value}" for name, value in values.items()))
