"""Where things are kept: one folder, laid out the same everywhere.

artifacts/<stage>/v<N>/   one immutable artifact: its files, and artifact.json (an `Artifact` record)
partial/<key>/            a stage that is not finished: output/ and checkpoints/, found again after a crash
models/<name>/            base models, converted once
runs/<run>/               recipe.yaml as resolved, report.html, report.json
answers/                  what a judge's endpoint was paid for: one file an answer, named by its question's digest
registry/<model>/v<N>/    what was promoted: a plain Hugging Face folder
metrics/<stage>.prom      what a stage under way is doing, for Prometheus
prefect/  mlflow.db  services/   what the services keep; their addresses and logs
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alignment.records import Artifact

ARTIFACT_FILE = "artifact.json"


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

    def artifacts(self, name: str | None = None) -> Iterator[Artifact]:
        """Every artifact (of one stage's name), oldest version first."""
        pattern = f"{name or '*'}/v*/{ARTIFACT_FILE}"
        found = [_read(path) for path in self.root.joinpath("artifacts").glob(pattern)]
        yield from sorted(found, key=lambda artifact: (artifact.name, artifact.version))

    def artifact(self, name: str, version: int) -> Artifact:
        """One artifact. Raises FileNotFoundError where there is none."""
        return _read(self.root / "artifacts" / name / f"v{version}" / ARTIFACT_FILE)

    def find(self, name: str, key: str) -> Artifact | None:
        """The newest artifact that was made under this cache key, if it is still there."""
        return next((one for one in reversed(list(self.artifacts(name))) if one.key == key), None)

    def publish(self, draft: Artifact, output: Path) -> Artifact:
        """Moves a finished output into the workspace as the next version of ``draft.name``.

        The version number and path of ``draft`` are replaced. The move is one rename, so an artifact is there whole or
        not at all; a rename onto a version that another process just made fails, and the next number is tried.
        """
        home = self.folder("artifacts", draft.name)
        version = 1 + max((int(p.name[1:]) for p in home.glob("v*") if p.name[1:].isdigit()), default=0)
        while True:
            target = home / f"v{version}"
            artifact = draft.model_copy(update={"version": version, "path": str(target)})
            write_text(output / ARTIFACT_FILE, artifact.model_dump_json(indent=2) + "\n")
            try:
                output.rename(target)
                return artifact
            except OSError:
                if not target.exists():
                    raise
                version += 1


def _read(path: Path) -> Artifact:
    record = json.loads(path.read_text("utf-8"))
    return Artifact.model_validate(record | {"path": str(path.parent)})  # a workspace may have been moved


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or none of it: under a temporary name first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 over the relative names and contents of a folder's files, `artifact.json` left out."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ARTIFACT_FILE):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()
