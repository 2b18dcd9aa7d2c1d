"""What the registry writes and gives back."""

from datetime import datetime

from alignment.evaluation.gate import GateVerdict
from alignment.records import ArtifactRef, Record
from alignment.registry.lineage import Lineage


class Change(Record):
    """One move of the alias ``champion``: to which version, when, and why."""

    version: int
    at: datetime
    why: str


class TaskResults(Record):
    """What lm-eval measured of a version: ``results`` by task and metric, as lm-eval names them (``acc,none``)."""

    at: datetime
    lm_eval: str  # its version
    candidate: ArtifactRef
    tasks: tuple[str, ...]
    limit: int | None  # examples of each task; None: all
    results: dict[str, dict[str, float]]
    n: dict[str, int]  # examples, by task


class Provenance(Record):
    """The run that made a version: its name, its recipe's digest, and the code's commit (None: not in a repository)."""

    run: str
    recipe_digest: str
    commit: str | None = None


class VersionRecord(Record):
    """What ``lineage.json`` holds. ``files`` are SHA-256 digests by relative path, this file and README.md left out."""

    name: str
    version: int
    recipe: str
    provenance: Provenance
    candidate: ArtifactRef
    verdict: GateVerdict
    chat_template: str | None
    lineage: Lineage
    files: dict[str, str]


class RegisteredVersion(Record):
    """A version as the registry lists it."""

    name: str
    version: int
    aliases: tuple[str, ...]
    folder: str
    candidate: ArtifactRef
    passed: bool
    waits: bool = False  # the gate's conditions hold, and nobody has approved it yet
    run: str
    recipe: str
    recipe_digest: str
    commit: str | None
    registered: datetime
    mlflow_run: str
    lineage_sha256: str  # of its lineage.json, which holds the digests of its files

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"


class VersionDetails(Record):
    """Everything about a version. ``problems`` are by node id, file name or "lineage.json"; none means ``intact``."""

    version: RegisteredVersion
    record: VersionRecord | None  # None: its lineage.json is gone
    intact: bool
    problems: dict[str, str]
    history: tuple[Change, ...]
    tasks: tuple[TaskResults, ...] = ()  # oldest first
