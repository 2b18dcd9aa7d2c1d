"""Backup, restore and removal of what nothing refers to, on workspaces with real artifacts and a database in use."""

import fcntl
import json
import os
import sqlite3
import tarfile
import time
from contextlib import closing
from pathlib import Path

import pytest

from alignment.durable_files import folder_digest
from alignment.errors import InputError
from alignment.records import Artifact
from alignment.workspace import Workspace
from flows.backups.waste import referenced
from flows.commands.backup import backup_command, gc_command, restore_command


def publish(workspace: Workspace, name: str, *made_of: Artifact) -> Artifact:
    """The next version of an artifact, of one file."""
    output = workspace.folder("partial", "making", "output")
    (output / "data.txt").write_text(f"{name} {time.time_ns()}")
    inputs = {one.name: one.ref() for one in made_of}
    draft = Artifact(
        name=name, kind="model", version=1, digest=folder_digest(output), path=str(output), key="key", inputs=inputs
    )
    artifact = workspace.publish(draft, output)
    (workspace.root / "partial" / "making").rmdir()
    return artifact


def report(workspace: Workspace, run: str, *artifacts: Artifact) -> None:
    outputs = [{"name": one.name, "kind": one.kind, "version": one.version, "digest": one.digest} for one in artifacts]
    path = workspace.folder("runs", run) / "report.json"
    path.write_text(json.dumps({"stages": [{"name": "any", "outputs": outputs}]}))


@pytest.fixture(autouse=True)
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """None named elsewhere, whose databases a backup would lack."""
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RLHF_STORE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """sft v1 → dpo v1 in an old run, sft v2 → dpo v2 in a new one, and reward v1 that no run names."""
    space = Workspace(tmp_path / "workspace")
    first, second = publish(space, "sft"), publish(space, "sft")
    report(space, "tiny-1", publish(space, "dpo", first))
    os.utime(space.root / "runs" / "tiny-1" / "report.json", (1, 1))
    report(space, "tiny-2", publish(space, "dpo", second))
    publish(space, "reward", second)
    return space


def listed(capsys: pytest.CaptureFixture[str]) -> set[str]:
    return {one["path"] for one in json.loads(capsys.readouterr().out)["found"]}


def test_what_the_newest_runs_refer_to_is_kept_with_its_inputs(workspace: Workspace) -> None:
    assert referenced(workspace, 1) == {("sft", 2), ("dpo", 2)}
    assert referenced(workspace, 2) == {("sft", 1), ("dpo", 1), ("sft", 2), ("dpo", 2)}


def test_a_registered_versions_lineage_is_kept(workspace: Workspace) -> None:
    path = workspace.folder("registry", "policy", "v1") / "lineage.json"
    path.write_text(json.dumps({"lineage": {"nodes": [{"name": "reward", "version": 1}]}}))
    assert referenced(workspace, 0) == {("reward", 1), ("sft", 2)}


def test_gc_lists_first_and_removes_when_told(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    def gc(*, remove: bool) -> set[str]:
        gc_command(workspace.root, runs=1, days=7, remove=remove, as_json=True)
        return listed(capsys)

    wanted = {"artifacts/sft/v1", "artifacts/dpo/v1", "artifacts/reward/v1"}
    assert gc(remove=False) == wanted
    assert {(one.name, one.version) for one in workspace.artifacts()} >= {("reward", 1)}
    assert gc(remove=True) == wanted
    assert {(one.name, one.version) for one in workspace.artifacts()} == {("sft", 2), ("dpo", 2)}
    assert gc(remove=False) == set()


def test_unfinished_stages_go_when_old_and_left_alone(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    old, young, held = (workspace.folder("partial", name, "checkpoints") for name in ("old", "young", "held"))
    for folder in (old, held):
        for path in (folder.parent, folder):
            os.utime(path, (1, 1))
    for name in ("old", "held"):
        (workspace.root / "partial" / f"{name}.lock").touch()
    with (workspace.root / "partial" / "held.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        gc_command(workspace.root, runs=9, days=7, remove=True, as_json=True)
    assert listed(capsys) == {"artifacts/reward/v1", "partial/old"}
    assert not old.exists()
    assert young.exists()
    assert held.exists()


def test_a_backup_restores_every_bit(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The database's last vote is in its write-ahead log alone, and its connection stays open."""
    workspace.folder("services", "log")
    with closing(sqlite3.connect(workspace.folder("raters") / "votes.db")) as live:
        live.execute("pragma journal_mode=wal")
        live.execute("create table votes (choice text)")
        live.execute("insert into votes values ('left')")
        live.commit()
        assert (workspace.root / "raters" / "votes.db-wal").stat().st_size > 0
        backup_command(workspace.root, tmp_path / "kept.tar", as_json=True)
    restored = tmp_path / "new" / "workspace"
    restore_command(tmp_path / "kept.tar", restored, as_json=True)
    capsys.readouterr()
    here, there = (
        {(one.name, one.version, one.digest, folder_digest(Path(one.path))) for one in Workspace(root).artifacts()}
        for root in (workspace.root, restored)
    )
    assert here == there
    assert len(there) == 5
    with closing(sqlite3.connect(restored / "raters" / "votes.db")) as database:
        assert database.execute("select choice from votes").fetchall() == [("left",)]
    assert {path.name for path in restored.iterdir()} == {"artifacts", "raters", "runs"}


def test_a_damaged_backup_restores_nothing(workspace: Workspace, tmp_path: Path) -> None:
    whole, damaged = tmp_path / "whole.tar", tmp_path / "damaged.tar"
    backup_command(workspace.root, whole, as_json=True)
    data = whole.read_bytes()
    place = data.index(b"reward 1")  # inside the artifact's only file
    damaged.write_bytes(data[:place] + b"REWARD" + data[place + 6 :])
    target = tmp_path / "new"
    with pytest.raises(InputError, match=r"artifacts/reward/v1/data\.txt: the file has changed"):
        restore_command(damaged, target, as_json=True)
    damaged.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError):
        restore_command(damaged, target, as_json=True)
    assert not target.exists()
    assert [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_a_backup_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evil").write_text("x")
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.add(tmp_path / "evil", arcname="../outside")
    with pytest.raises(InputError, match="not a whole backup"):
        restore_command(tmp_path / "evil.tar", tmp_path / "new" / "workspace", as_json=True)
    assert not (tmp_path / "new" / "outside").exists()


def test_nothing_is_overwritten(workspace: Workspace, tmp_path: Path) -> None:
    backup_command(workspace.root, tmp_path / "kept.tar", as_json=True)
    with pytest.raises(InputError, match="the file exists"):
        backup_command(workspace.root, tmp_path / "kept.tar", as_json=True)
    with pytest.raises(InputError, match="the workspace is not empty"):
        restore_command(tmp_path / "kept.tar", workspace.root, as_json=True)
    with pytest.raises(InputError, match="no such workspace"):
        gc_command(tmp_path / "absent", runs=1, days=1, remove=False, as_json=True)
