"""Memory that stays with the process between the steps of a stage."""

import ctypes
import sys

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # glibc's malloc.h
LARGEST = 2**30


def keep_freed_memory() -> None:
    """Has glibc keep what tensors free instead of handing it back to the kernel.

    By default every large tensor is a mapping of its own, whose pages the kernel clears anew at each step: a fifth of
    the time of a training step on a processor (tests/benchmarks/RESULTS.md). Elsewhere than on glibc, nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
