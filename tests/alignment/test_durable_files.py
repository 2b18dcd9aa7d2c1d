"""Files that are written whole: by many at once under one process id, and on the disk before they have their name."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.durable_files import make_read_only, remove_tree, rename_synced, write_text


def test_writers_with_one_process_id_tear_nothing(tmp_path: Path) -> None:
    """Processes of two containers have the same ids, as threads of one process do."""
    path = tmp_path / "figures.json"
    texts = [f"{number}" * 20_000 for number in range(4)]
    write_text(path, texts[0], synced=False)
    errors: list[BaseException] = []
    torn: list[str] = []

    def work(number: int) -> None:
        try:
            for _ in range(150):
                write_text(path, texts[number], synced=False)
                if (text := path.read_text()) not in texts:
                    torn.append(text)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (errors, torn) == ([], [])
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the system was asked, in order: ("fsync" or "rename", path)."""
    calls: list[tuple[str, str]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def recorded_fsync(descriptor: int) -> None:
        calls.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def recorded(move: Callable[..., None]) -> Callable[..., None]:
        def call(source: str, target: str) -> None:
            calls.append(("rename", str(target)))
            move(source, target)

        return call

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded(rename))
    monkeypatch.setattr(os, "replace", recorded(replace))
    return calls


def test_a_file_is_on_the_disk_before_its_name_and_its_name_after(tmp_path: Path, order: list[tuple[str, str]]) -> None:
    write_text(tmp_path / "a.txt", "text")
    (first, temporary), *rest = order
    assert first == "fsync"
    assert Path(temporary).parent == tmp_path
    assert rest == [("rename", str(tmp_path / "a.txt")), ("fsync", str(tmp_path))]


def test_a_folder_is_on_the_disk_before_its_name_and_its_name_after(
    tmp_path: Path, order: list[tuple[str, str]]
) -> None:
    source, target = tmp_path / "source", tmp_path / "there" / "target"
    (source / "inner").mkdir(parents=True)
    target.parent.mkdir()
    for name in ("a.bin", "inner/b.bin"):
        (source / name).write_bytes(b"x")
    rename_synced(source, target)
    place = order.index(("rename", str(target)))
    before, after = {path for _what, path in order[:place]}, {path for _what, path in order[place + 1 :]}
    assert before == {str(source / name) for name in ("a.bin", "inner/b.bin", "inner")} | {str(source)}
    assert after == {str(tmp_path), str(target.parent)}


def test_what_is_published_is_never_replaced(tmp_path: Path) -> None:
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError, match="not empty"):
        rename_synced(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target" / "file").read_text() == "target"


def test_read_only_files_can_be_removed_with_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text("x")
    make_read_only(folder)
    assert (folder / "inner" / "file").stat().st_mode & 0o222 == 0
    remove_tree(folder)
    remove_tree(folder)  # gone already
    assert list(tmp_path.iterdir()) == []
