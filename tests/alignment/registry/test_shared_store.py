"""One MLflow on PostgreSQL, which two workspaces share: every move is kept, every version can be read back."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy.event
from sqlalchemy.engine import Engine

from alignment.errors import InputError
from alignment.evaluation.gate import GateVerdict
from alignment.recipe.recipe import Recipe
from alignment.records import Artifact
from alignment.registry import Provenance, RegisteredVersion, find, list_versions, promote, register, rollback, show
from alignment.registry.store import RegistryStore
from alignment.workspace import Workspace

Run = dict[str, Artifact]
pytestmark = pytest.mark.timeout(600)


@contextmanager
def counted() -> Iterator[list[str]]:
    """The statements that reach any database inside the context."""
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith("PRAGMA"):
            statements.append(statement)

    sqlalchemy.event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        sqlalchemy.event.remove(Engine, "before_cursor_execute", note)


def many_versions(store: RegistryStore, template: RegisteredVersion, number: int) -> None:
    """Entries like the first version's, as runs of years would have made them; their files are the first one's."""
    tags = store.get(template.version).tags
    for version in range(template.version + 1, number + 1):
        store.client.create_model_version(store.name, source="file:///none", run_id=template.mlflow_run, tags=tags)
        shutil.copytree(template.folder, store.folder(version))


def test_listing_152_versions_takes_few_queries(
    workspace: Workspace, recipe: Recipe, provenance: Provenance, make_run: Callable[..., Run],
    judge: Callable[[Run], GateVerdict],
) -> None:  # fmt: skip
    run = make_run()
    version = register(workspace, recipe, run, "dpo", judge(run), provenance)
    many_versions(RegistryStore(workspace, "policy"), version, 152)
    with counted() as statements:
        assert len(list_versions(workspace)) == 152
    assert len(statements) <= 20
    with counted() as statements:
        assert find(workspace, "policy/100").version == 100
    assert len(statements) <= 20


@dataclass
class Shared:
    """Two workspaces of one registry; the first has registered version 1 as champion."""

    here: Workspace
    there: Workspace
    version: RegisteredVersion


@pytest.fixture
def shared(
    workspace: Workspace, recipe: Recipe, provenance: Provenance, make_run: Callable[..., Run],
    judge: Callable[[Run], GateVerdict], mlflow_on_postgres: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> Shared:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_on_postgres)
    (tmp_path / "there").mkdir()
    run = make_run()
    version = register(workspace, recipe, run, "dpo", judge(run), provenance)
    return Shared(workspace, Workspace(tmp_path / "there"), version)


@pytest.mark.slow
def test_seventy_promotions_stand_in_the_history(shared: Shared) -> None:
    """MLflow keeps 5,000 characters in a tag: with all moves in one, the 63rd promotion failed, and all after it."""
    store = RegistryStore(shared.here, "policy")
    many_versions(store, shared.version, 2)
    for number in range(70):
        promote(shared.here, f"policy/{2 - number % 2}", by="ada", reason=f"reason {number}")
    history = show(shared.here, "policy@champion").history
    assert [change.version for change in history] == [1] + [2 - number % 2 for number in range(70)]
    assert history[-1].why == "promoted by hand by ada: reason 69"
    assert find(shared.there, "policy@champion").version == 1
    assert rollback(shared.here, "policy").version == 2
    with pytest.raises(InputError, match="the reason and the name have 6,003 characters"):
        promote(shared.here, "policy/1", by="ada", reason="r" * 6000)


@pytest.mark.slow
def test_moves_of_two_workspaces_at_once_are_all_kept(shared: Shared) -> None:
    many_versions(RegistryStore(shared.here, "policy"), shared.version, 3)
    errors: list[Exception] = []

    def move(space: Workspace, version: int) -> None:
        store = RegistryStore(space, "policy")
        try:
            for number in range(15):
                store.set_champion(version, f"{version} {number}")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=move, args=work) for work in ((shared.here, 2), (shared.there, 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    state = RegistryStore(shared.here, "policy").state()
    expected = {f"{version} {number}" for version in (2, 3) for number in range(15)} | {"the gate passed"}
    assert {change.why for change in state.history} == expected
    assert len(state.history) == 31
    assert state.aliases["champion"] == state.history[-1].version


@pytest.mark.slow
def test_a_version_is_read_back_from_another_workspace(shared: Shared) -> None:
    found = find(shared.there, "policy@champion")
    assert Path(found.folder) == shared.there.root.resolve() / "registry" / "policy" / "v1"
    for path in Path(shared.version.folder).rglob("*"):
        if path.is_file():
            assert (Path(found.folder) / path.relative_to(shared.version.folder)).read_bytes() == path.read_bytes()
    shutil.rmtree(found.folder)
    damaged = Path(shared.version.folder) / "adapter_model.safetensors"
    damaged.chmod(0o644)
    damaged.write_bytes(bytes(10))
    with pytest.raises(InputError, match="the file has changed"):
        find(shared.there, "policy@champion")
    assert not Path(found.folder).exists()
    shutil.rmtree(shared.version.folder)
    with pytest.raises(InputError, match=r"are not in this workspace, and MLflow has them at file:"):
        find(shared.there, "policy@champion")
    assert [version.version for version in list_versions(shared.there)] == [1]
