"""Artifacts in a workspace: counted once, held against their digest, kept while a run uses them."""

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from alignment.durable_files import folder_digest
from alignment.records import Artifact
from alignment.workspace import Workspace


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def publish(space: Workspace, name: str = "sft", key: str = "key", run: str | None = None, text: str = "") -> Artifact:
    """An artifact of one file of 8,000 bytes."""
    output = space.folder("partial", f"{name}-{key}-{time.monotonic_ns()}", "output")
    (output / "weights.bin").write_bytes((text or key).encode().ljust(8000, b"w"))
    draft = Artifact(name=name, kind="model", version=1, digest=folder_digest(output), path=str(output), key=key)
    return space.publish(draft, output, run)


def damage(artifact: Artifact, *, keep_times: bool = False) -> None:
    """4,000 zeroed bytes in the middle, the length as it was."""
    path = Path(artifact.path) / "weights.bin"
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(2000)
        file.write(bytes(4000))
    path.chmod(0o444)
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_damaged_artifact_is_passed_over_and_said_in_a_line(space: Workspace, *, keep_times: bool) -> None:
    made = publish(space)
    assert space.find("sft", "key") == made
    damage(made, keep_times=keep_times)
    lines: list[str] = []
    assert space.find("sft", "key", lines.append) is None
    [line] = lines
    assert line.startswith("sft v1 is damaged and is not used: the files in ")
    assert "\n" not in line
    again = publish(space)
    assert (again.version, again.digest) == (2, made.digest)
    lines.clear()
    assert space.find("sft", "key", lines.append) == again
    assert lines == []


def test_an_artifact_with_a_missing_or_an_added_file_is_not_used(space: Workspace) -> None:
    for key in ("missing", "added"):
        home = Path(publish(space, key=key).path)
        (home / "weights.bin").unlink() if key == "missing" else (home / "more.bin").touch()
        assert space.find("sft", key, lambda _line: None) is None


def test_a_record_that_cannot_be_read_hides_no_other(space: Workspace) -> None:
    first, second = publish(space, key="a"), publish(space, key="b")
    record = Path(first.path) / "artifact.json"
    record.chmod(0o644)
    record.write_bytes(bytes(4000))
    lines: list[str] = []
    assert space.find("sft", "a", lines.append) is None
    assert [line for line in lines if "artifact.json is damaged and is not used" in line]
    assert space.find("sft", "b", lines.append) == second
    assert publish(space, key="a").version == 3


def test_digests_are_remembered_and_read_again_after_a_change(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, reads = publish(space), []
    monkeypatch.setattr("alignment.digest_memory.folder_digest", lambda path: reads.append(path) or folder_digest(path))
    assert space.find("sft", "key") == space.find("sft", "key") == made
    assert reads == []  # known from when it was published
    os.utime(Path(made.path) / "weights.bin")
    assert space.find("sft", "key") == space.find("sft", "key") == made
    assert len(reads) == 1
    shutil.rmtree(space.root / "digests")
    assert space.find("sft", "key") == made
    assert len(reads) == 2


def test_what_is_published_is_read_only(space: Workspace) -> None:
    made = publish(space)
    assert [path.stat().st_mode & 0o222 for path in Path(made.path).rglob("*") if path.is_file()] == [0, 0]


def test_a_number_is_never_given_twice(space: Workspace) -> None:
    assert [publish(space, key=str(number)).version for number in range(3)] == [1, 2, 3]
    assert space.remove("sft", 3)
    assert space.remove("sft", 1)
    assert publish(space, key="new").version == 4
    for version in (2, 4):
        assert space.remove("sft", version)
    assert publish(space, key="newer").version == 5
    shutil.rmtree(space.root / "artifacts" / "sft" / "v5")  # by hand
    assert publish(space, key="newest").version == 6


def test_a_workspace_of_before_counts_on(space: Workspace) -> None:
    """Workspaces that older versions made have no counter: removal makes it."""
    publish(space), publish(space, key="b")
    (space.root / "artifacts" / "sft" / ".last").unlink()
    assert space.remove("sft", 2)
    assert publish(space, key="c").version == 3


def test_many_at_once_get_numbers_of_their_own(space: Workspace) -> None:
    made: list[Artifact] = []
    threads = [threading.Thread(target=lambda n=n: made.append(publish(space, key=f"{n}"))) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.version for one in made) == list(range(1, 13))
    assert {one.key: one for one in space.artifacts()} == {one.key: one for one in made}


def test_what_a_run_claimed_is_not_removed(space: Workspace) -> None:
    made = publish(space)
    assert space.claim(made, "run-1")
    assert not space.remove("sft", 1, unless=lambda: ("sft", 1) in space.uses("run-1"))
    assert space.find("sft", "key") == made
    assert publish(space, name="dpo", run="run-1").version == 1
    assert space.uses("run-1") == {("sft", 1), ("dpo", 1)}


def test_what_was_removed_cannot_be_claimed(space: Workspace) -> None:
    made = publish(space)
    assert space.remove("sft", 1)
    assert not space.claim(made, "run-1")
    assert space.uses("run-1") == set()


def test_a_copied_workspace_reads_its_own_files(space: Workspace, tmp_path: Path) -> None:
    made = publish(space)
    shutil.copytree(space.root, tmp_path / "copy")
    assert str(space.root) not in (tmp_path / "copy/artifacts/sft/v1/artifact.json").read_text()
    copy = Workspace(tmp_path / "copy")
    damage(made)  # of the one that it was copied from
    found = copy.find("sft", "key")
    assert found is not None
    assert found.path == str(tmp_path / "copy/artifacts/sft/v1")


def test_a_run_is_under_way_while_its_process_says_so(space: Workspace) -> None:
    assert not space.is_under_way("run-1")
    with space.under_way("run-1"):
        assert space.is_under_way("run-1")
    assert not space.is_under_way("run-1")
