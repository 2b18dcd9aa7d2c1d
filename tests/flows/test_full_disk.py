"""What is said of a disk that is really full: `/dev/full`, and a small one that is filled up."""

import errno
from pathlib import Path

import pytest
import torch

from alignment.errors import StageError
from flows.failures import explain
from flows.full_disk import full_disk, naming_a_full_disk
from tests.flows.faults.room import full_disk as filled
from tests.flows.faults.room import small_disk


def test_the_kernels_answer_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="space") as caught, Path("/dev/full").open("w") as file:
        file.write("x" * 10_000)
    assert caught.value.errno == errno.ENOSPC
    line = full_disk(caught.value, tmp_path)
    assert line is not None
    assert line.startswith(f"No space left on device: {tmp_path} could not be written; make room on its disk")
    assert explain(caught.value)[1] == 1
    assert "make room on its disk" in explain(caught.value)[0]


def test_it_is_found_behind_what_a_library_made_of_it(tmp_path: Path) -> None:
    def write() -> None:
        try:
            with Path("/dev/full").open("w") as file:
                file.write("x" * 10_000)
        except OSError as error:
            raise RuntimeError("could not serialise") from error

    with pytest.raises(RuntimeError) as caught:
        write()
    assert "No space left on device" in str(full_disk(caught.value, tmp_path))
    assert full_disk(ValueError("loss is NaN"), tmp_path) is None
    assert full_disk(RuntimeError("I/O error: No space left on device (os error 28)"), tmp_path) is not None


def test_an_error_that_does_not_say_why_is_told_by_the_disk_itself(tmp_path: Path) -> None:
    """torch says that a file write failed, and no more."""
    with small_disk(tmp_path / "disk") as mounted:
        if not mounted:
            pytest.skip("a small disk cannot be mounted by this user")
        with (
            filled(tmp_path / "disk"),
            pytest.raises(StageError, match=r"^sft: No space left on device: .*disk could not be written; make room"),
            naming_a_full_disk("sft", tmp_path / "disk"),
        ):
            torch.save(torch.zeros(100_000), tmp_path / "disk" / "optimizer.pt")
        with pytest.raises(ValueError, match="other"), naming_a_full_disk("sft", tmp_path / "disk"):
            raise ValueError("other")
