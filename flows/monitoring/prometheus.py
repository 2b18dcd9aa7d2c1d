"""What a stage is doing, for Prometheus: a text file a stage, as node_exporter's textfile collector reads them.

``WORKSPACE/metrics/<stage>.prom`` is written anew while the stage runs, never half, and removed when it ends: a series
that stands still for a stage that has long ended would be a lie.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from alignment.stage import Progress
from alignment.workspace import Workspace
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
Rows = Sequence[tuple[Mapping[str, str], float]]  # a metric's values, each with its own labels


class _Families(Collector):
    """Metrics that are there already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = list(families)

    def collect(self) -> Iterator[Metric]:
        """Yields them."""
        yield from self.families


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
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            temporary.write_text(f"{owner_line()}\n{exposition(self._families(progress))}", "utf-8")
            temporary.replace(self.path)
        except OSError as error:  # no space, no right to write: that is no reason to stop a training
            if not self._silent:
                _log.warning("no metrics are written: %s", error)
            self._silent = True

    def _families(self, progress: Progress) -> Iterator[Metric]:
        values = {
            "rlhf_stage_step": progress.step,
            "rlhf_stage_steps": progress.total,
            "rlhf_stage_tokens": progress.tokens,
            "rlhf_stage_tokens_per_second": self._rate,
            "rlhf_stage_updated_seconds": time.time(),
        }
        yield from (gauge(name, [({}, value)], self.labels) for name, value in values.items())
        own = [({"metric": name}, value) for name, value in sorted(progress.metrics.items())]
        yield gauge("rlhf_stage_metric", own, self.labels)
        if uses := self._gpus.now:
            yield gauge("rlhf_gpu_utilization", [({"gpu": use.gpu}, use.utilization) for use in uses], self.labels)
            used = [({"gpu": use.gpu}, use.memory_used) for use in uses]
            yield gauge("rlhf_gpu_memory_used_bytes", used, self.labels)
            yield gauge("rlhf_gpu_memory_bytes", [({"gpu": use.gpu}, use.memory_total) for use in uses], self.labels)

    def close(self) -> None:
        """Removes the file, and stops looking at the GPUs."""
        self._gpus.close()
        with contextlib.suppress(OSError):  # a file that stays is a lesser fault than an error of the stage's, lost
            self.path.unlink(missing_ok=True)


def gauge(name: str, rows: Rows, labels: Mapping[str, str]) -> GaugeMetricFamily:
    """A gauge of ours with its values; ``labels`` are common to all of them."""
    names = [*labels, *(rows[0][0] if rows else ())]
    family = GaugeMetricFamily(name, HELP[name], labels=names)
    for own, value in rows:
        family.add_metric([{**labels, **own}[label] for label in names], value)
    return family


def exposition(families: Iterable[Metric]) -> str:
    """Metrics in Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
    return generate_latest(_registry(families)).decode()


def stages_at_work(workspace: Workspace) -> Iterator[tuple[str, str]]:
    """The stages under way, each with its file's text; a file that a killed process left is none's."""
    for path in sorted(workspace.folder("metrics").glob("*.prom")):
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:  # it ended meanwhile
            continue
        if not is_deserted(text):
            yield path.stem, text


def stage_families(workspace: Workspace) -> list[Metric]:
    """What every stage under way says: a metric of several stages once, with all of its values."""
    families: dict[str, Metric] = {}
    for _stage, text in stages_at_work(workspace):
        for family in text_string_to_metric_families(text):
            families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            families[family.name].samples += family.samples
    return [families[name] for name in HELP if name in families]


def _registry(families: Iterable[Metric]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Families(families))
    return registry
