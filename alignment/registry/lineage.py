"""Where a model came from: its artifacts, what each was made of, and whether they are still what they were.

A lineage is a directed acyclic graph. Its nodes are artifacts by name, version and digest; an edge says that one was
an input of the other. It is read from the artifacts themselves (:attr:`alignment.records.Artifact.inputs`), never from
what a recipe intended.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

from pydantic import Field

from alignment.durable_files import folder_digest
from alignment.errors import StageError
from alignment.recipe.base import BASE
from alignment.records import Artifact, ArtifactRef, Record
from alignment.workspace import Workspace


class LineageNode(ArtifactRef):
    """An artifact in a lineage.

    ``source`` is the base model's name as the recipe gives it, else the cache key; ``path`` is relative to the
    workspace where the artifact lies in it. ``chat_template`` is the SHA-256 of the template's text, None where the
    artifact is no model. ``origins`` are what it is made of that no artifact is (:class:`~alignment.records.Artifact`).
    """

    path: str
    source: str
    inputs: Mapping[str, ArtifactRef] = Field(default_factory=dict)
    origins: tuple[str, ...] = ()
    metrics: Mapping[str, float] = Field(default_factory=dict)
    chat_template: str | None = None

    @property
    def id(self) -> str:
        """``name@version``: unique within a lineage."""
        return node_id(self)


class Lineage(Record):
    """Nodes in an order in which every node comes after its inputs."""

    nodes: tuple[LineageNode, ...]

    @property
    def edges(self) -> list[tuple[str, str]]:
        """``(input, output)`` by node id."""
        return [(node_id(ref), node.id) for node in self.nodes for ref in node.inputs.values()]


def node_id(ref: ArtifactRef) -> str:
    """``name@version``."""
    return f"{ref.name}@{ref.version}"


def trace(workspace: Workspace, artifacts: Mapping[str, Artifact], roots: Iterable[str]) -> Lineage:
    """The artifacts named in ``roots`` and everything they were made of.

    ``artifacts`` are a run's, by stage name; an input that is not among them is looked up in the workspace. Raises
    StageError where an input is nowhere to be found.
    """
    found: dict[str, Artifact] = {}
    queue = [artifacts[name] for name in roots]
    while queue:
        artifact = queue.pop(0)
        if node_id(artifact) in found:
            continue
        found[node_id(artifact)] = artifact
        queue.extend(_lookup(workspace, artifacts, ref) for ref in artifact.inputs.values())
    order = TopologicalSorter({key: [node_id(ref) for ref in a.inputs.values()] for key, a in sorted(found.items())})
    return Lineage(nodes=tuple(_node(workspace, found[key]) for key in order.static_order()))


def problems(workspace: Workspace, lineage: Lineage) -> dict[str, str]:
    """What is no longer as it was, by node id: artifacts that are gone, or whose files or record changed.

    Reads every file of every artifact, base model included.
    """
    checks: tuple[Callable[[Workspace, LineageNode], str | None], ...] = (_folder_problem, _record_problem)
    return {node.id: problem for node in lineage.nodes for check in checks if (problem := check(workspace, node))}


def chat_template_digest(folder: Path) -> str | None:
    """SHA-256 of the text of a model folder's chat template; None where it has none."""
    template, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    text = None
    if template.exists():
        text = template.read_text("utf-8")
    elif config.exists():
        text = json.loads(config.read_text("utf-8")).get("chat_template")
    return None if text is None else hashlib.sha256(str(text).encode()).hexdigest()


def _lookup(workspace: Workspace, artifacts: Mapping[str, Artifact], ref: ArtifactRef) -> Artifact:
    ours = artifacts.get(ref.name)
    if ours is not None and (ours.version, ours.digest) == (ref.version, ref.digest):
        return ours
    try:
        found = workspace.artifact(ref.name, ref.version)
    except FileNotFoundError as error:
        raise StageError(f"the lineage is broken: {ref} is neither of this run nor in the workspace") from error
    if found.digest != ref.digest:
        raise StageError(f"the lineage is broken: {ref} was used, but the workspace holds {found.ref()}")
    return found


def _node(workspace: Workspace, artifact: Artifact) -> LineageNode:
    path, root = Path(artifact.path).resolve(), workspace.root.resolve()
    return LineageNode(
        **artifact.ref().model_dump(),
        path=path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path),
        source=artifact.key,
        inputs=artifact.inputs,
        origins=artifact.origins,
        metrics=artifact.metrics,
        chat_template=chat_template_digest(path),
    )


def _folder_problem(workspace: Workspace, node: LineageNode) -> str | None:
    folder = workspace.root.resolve() / node.path  # an absolute path stays as it is
    if not folder.is_dir():
        return f"{folder} is gone"
    return None if folder_digest(folder) == node.digest else f"the files in {folder} have changed"


def _record_problem(workspace: Workspace, node: LineageNode) -> str | None:
    if node.name == BASE:
        return None  # a base model has no record of ours beside it
    try:
        artifact = workspace.artifact(node.name, node.version)
    except (FileNotFoundError, ValueError):
        return "its record is gone or unreadable"
    recorded = (artifact.ref(), artifact.inputs, artifact.origins)
    return None if recorded == (node_ref(node), node.inputs, node.origins) else "its record has changed"


def node_ref(node: ArtifactRef) -> ArtifactRef:
    """A node without what a lineage adds to it."""
    return ArtifactRef(name=node.name, kind=node.kind, version=node.version, digest=node.digest)
