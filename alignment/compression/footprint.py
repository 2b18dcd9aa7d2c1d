"""What a model takes to answer: tokens a second, and the most memory, alone in this process."""

import ctypes
import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

MB = 10**6


@dataclass(slots=True)
class Peak:
    """The most bytes that were taken at a time beyond what was taken before; None where that cannot be told here."""

    bytes: int | None = None


@contextmanager
def peak_memory_of(device: torch.device) -> Iterator[Peak]:
    """Measures the most memory that is taken inside: a GPU's allocations, else the process's resident set (Linux)."""
    peak = Peak()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    can_reset = _reset_high_water()
    resident = _status("VmRSS")
    yield peak
    highest = _status("VmHWM")
    if can_reset and resident is not None and highest is not None:
        peak.bytes = max(0, highest - resident)


def _reset_high_water() -> bool:
    """Hands freed memory back and has the kernel count the process's peak anew; whether it does."""
    if not sys.platform.startswith("linux"):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # proc(5)
    except OSError:
        return False
    return True


def _status(name: str) -> int | None:
    """A figure of the kernel's about this process, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


@dataclass(slots=True)
class Speed:
    """Tokens and the seconds that they took."""

    tokens: int = 0
    seconds: float = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Adds the seconds inside."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start

    @property
    def per_second(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds if self.seconds else 0.0
