"""Versions of the aligned model: what was promoted, why, and where it came from (MLflow 3).

A version is a plain Hugging Face folder ``registry/<name>/v<N>/`` with its model card and ``lineage.json``, an MLflow
run with the parameters, metrics and curves that led to it, and an entry of MLflow's model registry. The alias
``champion`` names the promoted version; which versions held it is kept in the registered model's tags. Nothing here
touches MLflow's global state.

Order makes it safe: files are written aside and renamed, then the entry is made, then the alias moves.
"""

import difflib
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignment.digests import digest_of
from alignment.errors import Fault, InputError, StageError
from alignment.evaluation.gate import GateVerdict
from alignment.recipe.recipe import Recipe
from alignment.records import Artifact, ArtifactRef
from alignment.registry.card import write_card
from alignment.registry.files import (
    LINEAGE_FILE,
    Merge,
    is_adapter,
    model_files,
    read_record,
    require_whole,
    write_model,
)
from alignment.registry.lineage import chat_template_digest, problems, trace
from alignment.registry.records import Provenance, RegisteredVersion, VersionDetails, VersionRecord
from alignment.registry.store import CHAMPION, Store
from alignment.registry.task_results import task_results
from alignment.workspace import Workspace, file_digest, write_text


def register(
    workspace: Workspace,
    recipe: Recipe,
    artifacts: Mapping[str, Artifact],
    candidate: str,
    verdict: GateVerdict,
    provenance: Provenance,
    *,
    merge: Merge | None = None,
) -> RegisteredVersion:
    """Registers ``artifacts[candidate]`` as the next version: the champion where the verdict passed.

    ``artifacts`` are all of the run's by stage name, the base model included. ``merge`` writes whole weights into a
    folder; it is called for an adapter where the recipe's gate asks for it. The same candidate with the same verdict
    gives back the version that is there, and moves no alias. Raises StageError where the lineage is broken.
    """
    name, artifact = recipe.model.registered_name, artifacts[candidate]
    want_merged = recipe.gate is not None and recipe.gate.merge and is_adapter(artifact)
    if want_merged and merge is None:
        raise StageError("the recipe's gate asks for merged weights, and nothing was given that merges them")
    identity = digest_of([artifact.digest, verdict.model_dump(mode="json"), want_merged])
    roots = [candidate, *([recipe.gate.evaluation] if recipe.gate and recipe.gate.evaluation in artifacts else [])]
    lineage = trace(workspace, artifacts, roots)
    store = Store(workspace, name)
    with store.alone():
        for row in store.find(identity):
            if (found := _listed(store, row)) and Path(found.folder).is_dir():
                store.settle(row)
                return _listed(store, store.get(found.version))
        partial = workspace.folder("registry", name) / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        write_model(partial, artifact, artifacts, merge if want_merged else None)
        record = VersionRecord(
            name=name,
            version=store.next_version(),
            recipe=recipe.name,
            provenance=provenance,
            candidate=artifact.ref(),
            verdict=verdict,
            chat_template=chat_template_digest(Path(artifact.path)),
            lineage=lineage,
            files=model_files(partial),
        )
        return _enter(store, record, recipe, artifacts, partial, identity)


def _enter(
    store: Store,
    record: VersionRecord,
    recipe: Recipe,
    artifacts: Mapping[str, Artifact],
    partial: Path,
    identity: str,
) -> RegisteredVersion:
    run_id = store.log_run(record.provenance.run, recipe, artifacts, _tags(record, identity))
    while True:
        folder = store.folder(record.version)
        write_card(partial, record, recipe, artifacts)
        write_text(partial / LINEAGE_FILE, record.model_dump_json(indent=1) + "\n")
        tags = _tags(record, identity) | {"lineage_sha256": file_digest(partial / LINEAGE_FILE)}
        if folder.exists():
            shutil.rmtree(folder)  # no entry names it: it was left by a process that died here
        partial.rename(folder)
        row = store.create_version(folder, run_id, tags)
        if int(row.version) == record.version:
            break
        # Another workspace shares this registry and took the number: take the next one.
        store.delete_version(int(row.version))
        folder.rename(partial)
        record = record.model_copy(update={"version": int(row.version) + 1})
    store.settle(row)
    return _listed(store, store.get(record.version))


def list_versions(workspace: Workspace, name: str | None = None) -> list[RegisteredVersion]:
    """Every version (of one registered model), newest first. Raises InputError for a model that is not there."""
    names = Store.names(workspace)
    if name is not None and name not in names:
        raise InputError([_unknown("registered model", name, names)])
    stores = [Store(workspace, each) for each in names if name in (None, each)]
    versions = [_listed(store, row) for store in stores for row in store.all()]
    return sorted(versions, key=lambda version: (version.registered, version.version), reverse=True)


def find(workspace: Workspace, reference: str) -> RegisteredVersion:
    """The version that ``policy@champion``, ``policy/3`` or ``policy`` (its champion) names.

    Raises InputError, with the nearest that there is, where there is none.
    """
    name, _, alias = reference.partition("@")
    name, _, number = name.partition("/")
    versions = list_versions(workspace, name)
    if number:
        for version in versions:
            if str(version.version) == number.removeprefix("v"):
                return version
        raise InputError([_unknown(f"version of {name}", number, [str(v.version) for v in versions])])
    alias = alias or CHAMPION
    for version in versions:
        if alias in version.aliases:
            return version
    raise InputError([_unknown(f"alias of {name}", alias, sorted({a for v in versions for a in v.aliases}))])


def show(workspace: Workspace, reference: str) -> VersionDetails:
    """A version with its whole lineage, every digest checked against the disk. Raises InputError as :func:`find`."""
    version = find(workspace, reference)
    store = Store(workspace, version.name)
    record, found = read_record(Path(version.folder), _lineage_digest(store, version))
    if record is not None:
        found |= problems(workspace, record.lineage)
    return VersionDetails(
        version=version,
        record=record,
        intact=not found,
        problems=found,
        history=tuple(store.history()),
        tasks=tuple(task_results(workspace, version)),
    )


def promote(
    workspace: Workspace, reference: str, *, despite_gate: bool = False, by: str = "", reason: str = ""
) -> RegisteredVersion:
    """Makes a version the champion by hand; who did it, and why, stands in the champion's history.

    For a version whose gate waits for a person this is the approval. Raises InputError for a version that is not
    there, that the gate refused (unless ``despite_gate`` and a reason are given), or whose files are not what was
    registered.
    """
    version = find(workspace, reference)
    store = Store(workspace, version.name)
    refused = store.get(version.version).tags["gate"] == "refused"
    if refused and not despite_gate:
        remedy = "look at why with `rlhf models show`; on better evidence promote it with --force and --reason"
        raise InputError([Fault(f"the gate refused {version}", remedy)])
    if refused and not reason.strip():
        problem = f"the gate refused {version}, and no reason is given"
        raise InputError([Fault(problem, "say why in --reason: it is kept with the version", field="--reason")])
    with store.alone():
        require_whole(Path(version.folder), _lineage_digest(store, version))
        if CHAMPION not in version.aliases:
            how = "promoted despite the gate" if refused else "approved" if version.waits else "promoted by hand"
            who, why = f" by {by}" if by else "", f": {reason.strip()}" if reason.strip() else ""
            store.set_champion(version.version, f"{how}{who}{why}")
    return find(workspace, f"{version.name}/{version.version}")


def rollback(workspace: Workspace, name: str) -> RegisteredVersion:
    """Gives the alias ``champion`` back to the version that held it before; again, to the one before that.

    Raises InputError where no version held it before, or its files are not what was registered.
    """
    list_versions(workspace, name)
    store = Store(workspace, name)
    with store.alone():
        held = store.held()
        if len(held) < 2:
            raise InputError([Fault(f"no version of {name} was champion before", "promote a version by its number")])
        previous = find(workspace, f"{name}/{held[-2]}")
        require_whole(Path(previous.folder), _lineage_digest(store, previous))
        store.set_champion(previous.version, "rolled back")
    return find(workspace, f"{name}@{CHAMPION}")


def _lineage_digest(store: Store, version: RegisteredVersion) -> str:
    return str(store.get(version.version).tags["lineage_sha256"])


def _tags(record: VersionRecord, identity: str) -> dict[str, str]:
    """What MLflow shows of a version, its lineage included."""
    tags = {
        "identity": identity,
        "recipe": record.recipe,
        "recipe_digest": record.provenance.recipe_digest,
        "run": record.provenance.run,
        "commit": record.provenance.commit or "",
        "gate": "passed" if record.verdict.passed else "waiting" if record.verdict.waits else "refused",
        "candidate": record.candidate.model_dump_json(),
        "chat_template": record.chat_template or "",
    }
    return tags | {f"lineage.{node.name}": str(node) for node in record.lineage.nodes}


def _listed(store: Store, row: Any) -> RegisteredVersion:
    tags = row.tags
    return RegisteredVersion(
        name=row.name,
        version=int(row.version),
        aliases=tuple(store.aliases_of(int(row.version))),
        folder=str(store.folder(int(row.version))),
        candidate=ArtifactRef.model_validate_json(tags["candidate"]),
        passed=tags["gate"] == "passed",
        waits=tags["gate"] == "waiting" and all(one.version != int(row.version) for one in store.history()),
        run=tags["run"],
        recipe=tags["recipe"],
        recipe_digest=tags["recipe_digest"],
        commit=tags["commit"] or None,
        registered=datetime.fromtimestamp(row.creation_timestamp / 1000, UTC),
        mlflow_run=row.run_id,
    )


def _unknown(what: str, given: str, known: list[str]) -> Fault:
    nearest = difflib.get_close_matches(given, known, n=1, cutoff=0.0)
    remedy = (
        f"the nearest is {nearest[0]!r}; `rlhf models list` shows all" if nearest else "run a recipe with a gate first"
    )
    return Fault(f"there is no {what} {given!r}", remedy)
