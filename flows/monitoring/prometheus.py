"""What a stage is doing, for Prometheus: a text file a stage, as node_exporter's textfile collector reads them.

``WORKSPACE/metrics/<stage>.prom`` is written anew while the stage runs, never half, and removed when it ends: a series
that stands still for a stage that has long ended would be a lie. The format is Prometheus' text exposition format
(https://prometheus.io/docs/instrumenting/exposition_formats/).
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from alignment.stage import Progress
from alignment.workspace import Workspace, write_text
from flows.monitoring.gpu import GpuWatch
from flows.services.process_records import is_deserted, owner_line

_log = logging.getLogger(__name__)
SECONDS = 5.0  # between two versions of a file; Prometheus usually looks every 15
HELP = {
    "rlhf_stage_step": "The optimizer step (or batch) that a stage has finished.",
    "rlhf_stage_steps": "The steps that it will have made at its end.",
    "rlhf_stage_tokens": "The tokens that it has trained on and sampled.",
    "rlhf_stage_tokens_per_second": "Tokens a second since the file's version before.",
    "rlhf_stage_updated_seconds": "When this file was written, in seconds since 1970.",
    "rlhf_stage_metric": "The newest value of each of a stage's own metrics, such as its loss.",
    "rlhf_gpu_utilization": "Share of time in which a GPU of this machine computed, 0 to 1.",
    "rlhf_gpu_memory_used_bytes": "Memory in use on a GPU of this machine.",
    "rlhf_gpu_memory_bytes": "Memory of a GPU of this machine.",
    "rlhf_service_up": "Whether a service of `rlhf up` answers.",
    "rlhf_service_restarts": "How often a service of `rlhf up` was started again.",
}


class StageMetrics:
    """The file of one stage while it runs."""

    def __init__(self, workspace: Workspace, stage: str, labels: Mapping[str, str]) -> None:
        self.path: Path = workspace.folder("metrics") / f"{stage}.prom"
        self.labels = {"stage": stage, **labels}
        self._last, self._tokens, self._rate = float("-inf"), 0, 0.0
        self._gpus = GpuWatch()
        self._silent = False

    def write(self, progress: Progress) -> None:
        """Writes the file, if its last version is old enough or this step is the last."""
        now = time.monotonic()
        if now - self._last < SECONDS and progress.step < progress.total:
            return
        if now > self._last:  # two steps can fall on one tick of the clock
            self._rate = (progress.tokens - self._tokens) / (now - self._last)  # 0 at first: infinitely long ago
        self._last, self._tokens = now, progress.tokens
        values = {
            "rlhf_stage_step": progress.step,
            "rlhf_stage_steps": progress.total,
            "rlhf_stage_tokens": progress.tokens,
            "rlhf_stage_tokens_per_second": self._rate,
            "rlhf_stage_updated_seconds": time.time(),
        }
        lines = [owner_line()]
        lines += [line for name, value in values.items() for line in family(name, [({}, value)], self.labels)]
        own = [({"metric": name}, value) for name, value in sorted(progress.metrics.items())]
        lines += family("rlhf_stage_metric", own, self.labels)
        lines += self._gpu_lines()
        try:
            write_text(self.path, "\n".join(lines) + "\n")
        except OSError as error:  # no space, no right to write: that is no reason to stop a training
            if not self._silent:
                _log.warning("no metrics are written: %s", error)
            self._silent = True

    def _gpu_lines(self) -> list[str]:
        uses = self._gpus.now
        values = {
            "rlhf_gpu_utilization": [({"gpu": one.gpu}, one.utilization) for one in uses],
            "rlhf_gpu_memory_used_bytes": [({"gpu": one.gpu}, one.memory_used) for one in uses],
            "rlhf_gpu_memory_bytes": [({"gpu": one.gpu}, one.memory_total) for one in uses],
        }
        return [line for name, rows in values.items() if rows for line in family(name, rows, self.labels)]

    def close(self) -> None:
        """Removes the file, and stops looking at the GPUs."""
        self._gpus.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def family(name: str, rows: list[tuple[dict[str, str], float]], labels: Mapping[str, str]) -> list[str]:
    """A metric in the exposition format: what it is, then its values, each with its own labels and the common ones."""
    lines = [f"# HELP {name} {HELP[name]}", f"# TYPE {name} gauge"]
    for more, value in rows:
        pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in {**labels, **more}.items())
        lines.append(f"{name}{{{pairs}}} {_number(value)}")
    return lines


def _number(value: float) -> str:
    """As Go's ParseFloat reads it: NaN, +Inf, -Inf and the rest."""
    if value != value:
        return "NaN"
    return {float("inf"): "+Inf", float("-inf"): "-Inf"}.get(value, repr(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def stages_at_work(workspace: Workspace) -> Iterator[tuple[str, str]]:
    """The stages under way, each with its file's text; a file that a killed process left is none's."""
    for path in sorted(workspace.folder("metrics").glob("*.prom")):
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:  # it ended meanwhile
            continue
        if not is_deserted(text):
            yield path.stem, text


def all_stages(workspace: Workspace) -> str:
    """What every stage under way says, as one page: HELP and TYPE of a metric stand once, before all of its values."""
    families: dict[str, list[str]] = {name: [] for name in HELP}
    for _stage, text in stages_at_work(workspace):
        for line in text.splitlines():
            if not line.startswith("#") and (values := families.get(line.partition("{")[0])) is not None:
                values.append(line)
    lines = []
    for name, values in families.items():
        if values:
            lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} gauge", *values]
    return "".join(f"{line}\n" for line in lines)
