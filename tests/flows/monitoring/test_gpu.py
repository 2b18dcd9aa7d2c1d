"""How busy GPUs are, through NVIDIA's Python library: over a management library compiled here, and without one.

The C functions, structures and error codes are those of NVML's reference (nvml.h), as a driver has them.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.monitoring.gpu import GpuWatch

NVML = r"""
#include <stddef.h>
typedef struct { unsigned int gpu, memory; } utilization_t;           /* per cent */
typedef struct { unsigned long long total, free, used; } memory_t;    /* bytes */
static int devices[3] = {0, 1, 2};
int nvmlInitWithFlags(unsigned int flags) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "an error"; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 3; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    if (index == 2) return 15;                                         /* NVML_ERROR_GPU_IS_LOST */
    *device = &devices[index];
    return 0;
}
int nvmlDeviceGetUtilizationRates(void *device, utilization_t *rates) {
    if (*(int *)device == 1) return 3;                                 /* NVML_ERROR_NOT_SUPPORTED: in MIG mode */
    rates->gpu = 87; rates->memory = 40;
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
    memory->total = 85520809984ULL; memory->used = 31457280000ULL; memory->free = memory->total - memory->used;
    return 0;
}
"""
PROGRAM = """
import dataclasses, json
from flows.monitoring.gpu import GpuWatch
with GpuWatch() as watch:
    seen = watch.now
print(json.dumps([[dataclasses.asdict(use) for use in seen], watch.now]))
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make a management library with")
def test_what_the_driver_says(tmp_path: Path) -> None:
    source = tmp_path / "nvml.c"
    source.write_text(NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment["LD_LIBRARY_PATH"] = f"{tmp_path}:{environment.get('LD_LIBRARY_PATH', '')}"
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, env=environment,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    (first, second), afterwards = json.loads(ended.stdout)  # the third has fallen off the bus, and is left out
    assert first == {
        "gpu": "0", "utilization": 0.87, "memory_used": 31457280000.0, "memory_total": 85520809984.0
    }  # fmt: skip
    assert (second["gpu"], second["memory_total"]) == ("1", 85520809984.0)
    assert math.isnan(second["utilization"])
    assert afterwards == []


def test_no_driver_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        with GpuWatch() as watch:
            assert watch.now == []
        watch.close()  # twice
    else:
        pynvml.nvmlShutdown()
        pytest.skip("this machine has a driver")


def test_hidden_gpus_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with GpuWatch() as watch:
        assert watch.now == []
