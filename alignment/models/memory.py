"""Memory: what stays with the process between the steps of a stage, and what is said where it runs out."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from alignment.errors import StageError
from alignment.recipe.stages.spec import StageSettings

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


@contextmanager
def naming_what_ran_out(stage: str, settings: StageSettings) -> Iterator[None]:
    """Turns an allocation that failed into a StageError that says which of the stage's settings to lower.

    A process that the kernel kills for its memory says nothing: that can be told from :mod:`alignment.plan` alone.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise StageError(_what_to_change(stage, settings, "the GPU has no memory left")) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # torch has no class of its own for the processor's
            raise
        raise StageError(_what_to_change(stage, settings, "there is no memory left")) from error


def _what_to_change(stage: str, settings: StageSettings, problem: str) -> str:
    lower = [f"{name} (it is {value})" for name, value in settings.memory_settings().items()]
    remedies = [f"lower {' or '.join(lower)}"] if lower else []
    if "gradient_checkpointing" in (settings.lighter() or {}):
        remedies.append("set gradient_checkpointing: true")
    remedies.append("see what `rlhf plan` says each stage needs")
    return f"{stage}: {problem}; {', or '.join(remedies)}. A finished stage and the last checkpoint are kept"
