"""Which number format a machine computes fast in. Light to import: torch is asked only where there is a GPU."""

import platform
from functools import cache
from pathlib import Path
from typing import Literal

Precision = Literal["bfloat16", "float32"]
NVIDIA = Path("/proc/driver/nvidia/version")
CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86's two, and Arm's


def natural_precision(device: str) -> Precision:
    """``bfloat16`` where a device multiplies matrices in it, else ``float32``.

    ``device`` is "auto", "cpu" or "cuda", as ``resources.device``.

    A processor without such instructions takes bfloat16 all the same, some forty times slower than float32
    (tests/benchmarks/RESULTS.md): most laptops are of that kind.
    """
    if device != "cpu" and NVIDIA.exists():
        import torch

        if torch.cuda.is_available():
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if _processor_flags() & BFLOAT16_FLAGS else "float32"


@cache
def _processor_flags() -> frozenset[str]:
    if platform.system() != "Linux":
        return frozenset()
    lines = CPUINFO.read_text("utf-8", "replace").splitlines()
    named = (line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features")))
    return frozenset(next(named, "").split())
