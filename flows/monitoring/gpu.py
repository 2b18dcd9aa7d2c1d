"""How busy the GPUs of this machine are while a stage runs, from ``nvidia-smi``, which comes with the driver.

It is asked to go on by itself and is read by a thread: starting it takes longer than a training step. One whose
reader has died ends with its next line, because nobody reads that.
"""

import os
import shutil
import subprocess
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Self

SECONDS = 5
FIELDS = "index,utilization.gpu,memory.used,memory.total"
MIB = 2**20


@dataclass(frozen=True, slots=True)
class GpuUse:
    """One GPU at one moment: ``utilization`` is the share of time in which it computed, 0 to 1; memory in bytes."""

    gpu: str
    utilization: float
    memory_used: float
    memory_total: float


class GpuWatch:
    """Reads the GPUs from its start to :meth:`close`; sees none where there is no driver."""

    def __init__(self, program: str = "nvidia-smi") -> None:
        self._seen: dict[str, GpuUse] = {}
        self._process: subprocess.Popen[str] | None = None
        found = shutil.which(program)
        if found is None or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
            return
        command = [found, f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits", f"--loop={SECONDS}"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        threading.Thread(target=self._read, args=(self._process.stdout,), name="gpu-use", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def now(self) -> list[GpuUse]:
        """The newest reading of each GPU, by index."""
        return [self._seen[name] for name in sorted(self._seen)]

    def close(self) -> None:
        """Ends the reading."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _read(self, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                if (use := parse(line)) is not None:
                    self._seen = {**self._seen, use.gpu: use}


def parse(line: str) -> GpuUse | None:
    """A line of nvidia-smi's table; a figure that a GPU does not have ("[N/A]", as in MIG mode) is not a number."""
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 4 or not parts[0].isdecimal():
        return None
    share, used, total = (_number(part) for part in parts[1:])
    return GpuUse(parts[0], share / 100, used * MIB, total * MIB)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
