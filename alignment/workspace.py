"""Where things are kept: one folder, laid out the same everywhere.

artifacts/<stage>/v<N>/   one immutable artifact: its files (read-only), and artifact.json (an `Artifact` record)
partial/<key>/            a stage that is not finished: output/ and checkpoints/, found again after a crash
models/<name>/            base models, converted once, each with its digest beside it
runs/<run>/               recipe.yaml as resolved, uses.json, report.html, report.json
sweeps/<sweep>/           the recipes of its runs, sweep.html, sweep.json
answers/                  what a judge's endpoint was paid for: one file an answer, named by its question's digest
registry/<model>/v<N>/    what was promoted: a plain Hugging Face folder
metrics/<stage>.prom      what a stage under way is doing, for Prometheus
prefect/  mlflow.db  services/   what the services keep; their addresses and logs
digests/                  what was found when files were last read, by their sizes and times; may be removed

Nothing that is persisted names a place inside the workspace by an absolute path, so a copied or moved workspace reads
its own files and no others.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from alignment.digest_memory import remember_digest, remembered_digest
from alignment.durable_files import ARTIFACT_FILE, make_read_only, remove_tree, rename_synced, write_text
from alignment.records import Artifact

_log = logging.getLogger(__name__)
USES_FILE = "uses.json"
LAST_FILE = ".last"  # the highest version number that was ever given, beside the versions


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace by its root folder; folders are made when first needed."""

    root: Path

    @property
    def mlflow_uri(self) -> str:
        """The tracking and registry store: ``MLFLOW_TRACKING_URI`` where set, else SQLite in the workspace."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root.resolve()}/mlflow.db"

    def folder(self, *parts: str) -> Path:
        """A folder below the root, made where it is missing."""
        path = self.root.joinpath(*parts).resolve()
        path.mkdir(parents=True, exist_ok=True)
        return path

    def artifacts(self, name: str | None = None, damaged: Callable[[str], None] = _log.warning) -> Iterator[Artifact]:
        """Every artifact (of one stage's name), oldest version first; ``damaged`` is told of records it cannot read."""
        pattern = f"{name or '*'}/v*/{ARTIFACT_FILE}"
        records = [_read_or_none(path, damaged) for path in self.root.joinpath("artifacts").glob(pattern)]
        yield from sorted((one for one in records if one is not None), key=lambda one: (one.name, one.version))

    def artifact(self, name: str, version: int) -> Artifact:
        """One artifact. Raises FileNotFoundError where there is none."""
        return _read(self.root / "artifacts" / name / f"v{version}" / ARTIFACT_FILE)

    def find(self, name: str, key: str, damaged: Callable[[str], None] = _log.warning) -> Artifact | None:
        """The newest artifact that was made under this cache key and is still what was made.

        Its files are held against their digest (:mod:`alignment.digest_memory`); ``damaged`` is told of one that
        differs, in a line, and it is passed over.
        """
        for artifact in reversed([one for one in self.artifacts(name, damaged) if one.key == key]):
            if (problem := self.damage(artifact)) is None:
                return artifact
            damaged(problem)
        return None

    def damage(self, artifact: Artifact) -> str | None:
        """What is wrong with an artifact's files, in a line; None where they are what was made."""
        try:
            digest = remembered_digest(Path(artifact.path), self._memory(artifact))
        except FileNotFoundError:
            return f"{artifact.name} v{artifact.version} was removed"
        except OSError as error:
            return f"{artifact.name} v{artifact.version} cannot be read ({error}) and is not used"
        if digest == artifact.digest:
            return None
        return (
            f"{artifact.name} v{artifact.version} is damaged and is not used: the files in {artifact.path} have "
            f"digest {digest[:12]}, and {artifact.digest[:12]} was made"
        )

    def publish(self, draft: Artifact, output: Path, run: str | None = None) -> Artifact:
        """Moves a finished output into the workspace as the next version of ``draft.name``, read-only.

        The version number and path of ``draft`` are replaced; a number that was ever given is not given again, also
        where its artifact was removed. The files are on the disk before the one rename that publishes them, so an
        artifact is there whole or not at all. ``run`` is noted as using it, see :meth:`claim`.
        """
        home = self.folder("artifacts", draft.name)
        with self._changing(draft.name):
            version = 1 + self._last_version(draft.name)
            while (home / f"v{version}").exists():
                version += 1
            target = home / f"v{version}"
            artifact = draft.model_copy(update={"version": version, "path": str(target)})
            record = artifact.model_copy(update={"path": ""})  # where it lies is known by who reads it
            write_text(output / ARTIFACT_FILE, record.model_dump_json(indent=2) + "\n")
            make_read_only(output)
            write_text(home / LAST_FILE, f"{version}\n")
            rename_synced(output, target)
            remember_digest(target, artifact.digest, self._memory(artifact))
            if run is not None:
                self._note_use(artifact, run)
        return artifact

    def claim(self, artifact: Artifact, run: str) -> bool:
        """Notes that a run uses an artifact, which keeps it from removal. False where it has been removed already."""
        with self._changing(artifact.name):
            if not (Path(artifact.path) / ARTIFACT_FILE).exists():
                return False
            self._note_use(artifact, run)
        return True

    def remove(self, name: str, version: int, unless: Callable[[], bool] = lambda: False) -> bool:
        """Removes an artifact, never half of it, unless ``unless()`` holds once no run can claim it any more."""
        folder = self.root / "artifacts" / name / f"v{version}"
        with self._changing(name):
            if unless():
                return False
            write_text(folder.parent / LAST_FILE, f"{max(version, self._last_version(name))}\n")
            remove_tree(folder)
            self.root.joinpath("digests", "artifacts", name, f"v{version}.json").unlink(missing_ok=True)
        return True

    def uses(self, run: str) -> set[tuple[str, int]]:
        """(name, version) of the artifacts that a run has noted to use."""
        try:
            rows = json.loads((self.root / "runs" / run / USES_FILE).read_text("utf-8"))
            return {(str(name), int(version)) for name, version in rows}
        except (OSError, ValueError, TypeError):
            return set()

    @contextmanager
    def under_way(self, run: str) -> Iterator[None]:
        """Marks a run as under way while the context, or the process, lasts."""
        with FileLock(self.folder("runs", run) / ".lock"):
            yield

    def is_under_way(self, run: str) -> bool:
        """Whether a process is at work on a run."""
        return is_locked(self.root / "runs" / run / ".lock")

    def _changing(self, name: str) -> FileLock:
        """One process at a time publishes, claims or removes the artifacts of one name."""
        return FileLock(self.folder("artifacts", name) / ".lock")

    def _last_version(self, name: str) -> int:
        home = self.root / "artifacts" / name
        numbers = [int(path.name[1:]) for path in home.glob("v*") if path.name[1:].isdigit()]
        with suppress(OSError, ValueError):
            numbers.append(int((home / LAST_FILE).read_text("utf-8")))
        return max(numbers, default=0)

    def _note_use(self, artifact: Artifact, run: str) -> None:
        uses = self.uses(run)
        if (artifact.name, artifact.version) not in uses:
            text = json.dumps(sorted([*uses, (artifact.name, artifact.version)]))
            write_text(self.folder("runs", run) / USES_FILE, text + "\n")

    def _memory(self, artifact: Artifact) -> Path:
        return self.root / "digests" / "artifacts" / artifact.name / f"v{artifact.version}.json"


def is_locked(path: Path) -> bool:
    """Whether some process holds a lock file. Makes no file where there is none."""
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def _read(path: Path) -> Artifact:
    record = json.loads(path.read_text("utf-8"))
    return Artifact.model_validate(record | {"path": str(path.parent)})  # a workspace may have been moved


def _read_or_none(path: Path, damaged: Callable[[str], None]) -> Artifact | None:
    try:
        return _read(path)
    except FileNotFoundError:  # removed meanwhile
        return None
    except (OSError, ValueError) as error:
        damaged(f"the record {path} is damaged and is not used: {str(error).splitlines()[0]}")
        return None
