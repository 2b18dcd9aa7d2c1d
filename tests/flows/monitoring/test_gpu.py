"""nvidia-smi's lines, from a program that says what it says, and that is asked the way it is asked."""

import os
import time
from pathlib import Path

import pytest

from flows.monitoring.gpu import GpuUse, GpuWatch, parse


def test_lines() -> None:
    assert parse("0, 87, 30000, 81559\n") == GpuUse("0", 0.87, 30000 * 2**20, 81559 * 2**20)
    mig = parse("1, [N/A], 12, 81559")
    assert mig is not None
    assert mig.utilization != mig.utilization
    assert parse("No devices were found") is None


def test_a_program_is_read_while_it_lasts_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\necho "$@" > "$0.asked"\necho $$ > "$0.pid"\n'
        'echo "1, 10, 1, 4"\necho "0, 50, 2, 4"\necho "0, 60, 3, 4"\nexec sleep 60\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with GpuWatch() as watch:
        end = time.monotonic() + 20
        while [one.utilization for one in watch.now] != [0.6, 0.1]:
            assert time.monotonic() < end
            time.sleep(0.02)
        pid = int(Path(f"{program}.pid").read_text())
    assert not Path(f"/proc/{pid}").exists()
    asked = Path(f"{program}.asked").read_text()
    assert "--query-gpu=index,utilization.gpu,memory.used,memory.total" in asked
    assert "--format=csv,noheader,nounits" in asked


def test_no_driver_no_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with GpuWatch() as watch:
        assert watch.now == []
