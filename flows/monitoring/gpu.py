"""How busy this machine's GPUs are while a stage runs, from NVIDIA's management library, which the driver brings."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class GpuUse:
    """One GPU at one moment: ``utilization`` is the share of time in which it computed, 0 to 1; memory in bytes.

    A figure that a GPU does not give, as the utilization in MIG mode, is not a number.
    """

    gpu: str
    utilization: float
    memory_used: float
    memory_total: float


class GpuWatch:
    """Reads the GPUs whenever it is asked, up to :meth:`close`; sees none where there is no driver, or where
    ``CUDA_VISIBLE_DEVICES`` is empty."""

    def __init__(self) -> None:
        self._library: Any = None
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
            return
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:  # no driver, or none that answers
            return
        self._library = pynvml

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def now(self) -> list[GpuUse]:
        """Every GPU as it is, by index; one that no longer answers is left out."""
        if self._library is None:
            return []
        try:
            uses = [self._read(index) for index in range(self._library.nvmlDeviceGetCount())]
        except self._library.NVMLError:
            return []
        return [use for use in uses if use is not None]

    def close(self) -> None:
        """Ends the reading. A second time does nothing."""
        library, self._library = self._library, None
        if library is not None:
            try:
                library.nvmlShutdown()
            except library.NVMLError:
                return

    def _read(self, index: int) -> GpuUse | None:
        nvml = self._library
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError:
            return None
        return GpuUse(
            gpu=str(index),
            utilization=self._figure(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
            memory_used=self._figure(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used),
            memory_total=self._figure(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total),
        )

    def _figure(self, read: Callable[[], float]) -> float:
        try:
            return float(read())
        except self._library.NVMLError:
            return math.nan
