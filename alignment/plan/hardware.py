"""Machines: a small table, with prices that are plain assumptions, and this one."""

import os
import time
from dataclasses import dataclass, replace
from typing import Literal

GIB = 2**30
Precision = Literal["bfloat16", "float32"]


@dataclass(frozen=True, slots=True)
class Machine:
    """One device. Rates are the data sheet's (dense, no sparsity); ``share`` is what training reaches of them.

    ``step_seconds`` is what a layer's forward pass costs however small it is: launching kernels, and Python.
    ``program`` is what is in the device's memory before any tensor is.
    """

    name: str
    memory: int  # bytes
    bfloat16: float  # floating-point operations per second
    float32: float
    bandwidth: float  # bytes per second
    price: float = 0.0  # US dollars per hour; an assumption, not an offer
    share: float = 0.35  # of the peak, as large models reach it with plain kernels (Chowdhery et al. 2022, table 3)
    step_seconds: float = 4e-4
    program: int = GIB // 2  # the CUDA context
    natural: Precision = "bfloat16"  # what `model.dtype: auto` means there
    gpu: bool = True

    def peak(self, precision: str) -> float:
        """Operations per second in a number format."""
        return self.bfloat16 if precision == "bfloat16" else self.float32


GPUS = (
    Machine("L4", int(22.5 * GIB), 121e12, 30e12, 300e9, price=0.8),
    Machine("A10G", int(22.5 * GIB), 70e12, 31e12, 600e9, price=1.2),
    Machine("RTX-4090", int(23.5 * GIB), 165e12, 82e12, 1008e9, price=0.5),
    Machine("L40S", int(44.5 * GIB), 362e12, 91e12, 864e9, price=1.4),
    Machine("A100-80GB", int(79 * GIB), 312e12, 19.5e12, 2039e9, price=1.9),
    Machine("H100", int(79 * GIB), 989e12, 67e12, 3350e9, price=3.0),
    Machine("H200", int(140 * GIB), 989e12, 67e12, 4800e9, price=3.8),
    Machine("B200", int(179 * GIB), 2250e12, 75e12, 8000e9, price=5.5),
)
DEFAULT_BFLOAT16, DEFAULT_FLOAT32 = 390e9, 170e9  # of two server cores with AMX, in a large matrix product
DEFAULT_BANDWIDTH = 10e9


def this_processor(natural: Precision, *, measured: bool = False) -> Machine:
    """This machine's processor and memory: rates are the stated default, or those of a matrix product of a second."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    machine = Machine(
        "cpu", memory, DEFAULT_BFLOAT16, DEFAULT_FLOAT32, DEFAULT_BANDWIDTH, step_seconds=3e-4, program=GIB,
        natural=natural, gpu=False,
    )  # fmt: skip
    if not measured:
        return machine
    return replace(machine, bfloat16=matrix_rate("bfloat16"), float32=matrix_rate("float32"))


def matrix_rate(precision: str, size: int = 1024, seconds: float = 0.4) -> float:
    """Operations per second of square matrix products, the best of as many as ``seconds`` allow."""
    import torch

    left = torch.randn(size, size).to(getattr(torch, precision))
    left @ left
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        left @ left
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
