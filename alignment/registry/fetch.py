"""The files of a version that another workspace registered on a shared MLflow, brought into this one."""

import shutil
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from alignment.digest_memory import is_remembered, remember_digest
from alignment.durable_files import make_read_only, rename_synced, temporary_beside
from alignment.errors import Fault, InputError
from alignment.registry.files import require_whole
from alignment.registry.records import RegisteredVersion
from alignment.registry.store import RegistryStore, is_own


def fetch(store: RegistryStore, version: RegisteredVersion) -> None:
    """Makes sure that a version's folder is there, copied from where MLflow says its files are, and whole.

    The files are read again where their sizes or times are others than when they were last found whole. Raises
    InputError where they are not to be had, or are not what was registered.
    """
    folder = Path(version.folder)
    memory = store.workspace.root / "digests" / "registry" / version.name / f"v{version.version}.json"
    if is_remembered(folder, version.lineage_sha256, memory):
        return
    if not folder.is_dir():
        _bring(store, version, folder)
    require_whole(folder, version.lineage_sha256)
    remember_digest(folder, version.lineage_sha256, memory)


def _bring(store: RegistryStore, version: RegisteredVersion, folder: Path) -> None:
    with store.alone():
        if folder.is_dir():  # another process was faster
            return
        temporary = temporary_beside(folder)
        try:
            _copy(store, version, temporary)
            require_whole(temporary, version.lineage_sha256)
            make_read_only(temporary)
            rename_synced(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _copy(store: RegistryStore, version: RegisteredVersion, target: Path) -> None:
    source = str(store.get(version.version).source)
    place = _local(source)
    try:
        if place is None:
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
                downloaded: Any = store.client.download_artifacts(version.mlflow_run, "model", scratch)
                Path(downloaded).rename(target)
        elif is_own(store.workspace):  # nobody else writes there: a copied workspace must not read what it came from
            raise FileNotFoundError(place)
        else:
            shutil.copytree(place, target)
    except OSError as error:
        where = f"MLflow has them at {source}, where they are not" if place else f"MLflow does not give them: {error}"
        problem = f"the files of {version} are not in this workspace, and {where}"
        remedy = "restore them from a backup, or register the version again from the workspace that made it"
        raise InputError([Fault(problem, remedy, file=version.folder)]) from error


def _local(uri: str) -> Path | None:
    """The folder that an address names on this machine; None for one on a server."""
    parts = urllib.parse.urlsplit(uri)
    return Path(urllib.request.url2pathname(parts.path)) if parts.scheme in ("file", "") else None
