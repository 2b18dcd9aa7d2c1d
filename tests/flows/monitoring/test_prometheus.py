"""A stage's metrics file, read by Prometheus' own Python parser."""

import math
from pathlib import Path

import pytest

from alignment.stage import Progress
from alignment.workspace import Workspace
from flows.monitoring.prometheus import StageMetrics, exposition, gauge, stage_families


def read(path: Path) -> dict[tuple[str, str], float]:
    """Values by (name, the metric's label)."""
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(path.read_text("utf-8"))
    return {
        (sample.name, sample.labels.get("metric", "")): sample.value for family in families for sample in family.samples
    }


def test_prometheus_reads_the_file(tmp_path: Path) -> None:
    metrics = StageMetrics(Workspace(tmp_path), "dpo", {"recipe": 'a "tiny"\\one\n'})
    metrics.write(Progress(3, 8, {"loss": 0.5, "rewards/margins": math.nan, "kl": math.inf}, tokens=900))
    found = read(tmp_path / "metrics" / "dpo.prom")
    assert found["rlhf_stage_step", ""] == 3
    assert found["rlhf_stage_steps", ""] == 8
    assert found["rlhf_stage_tokens", ""] == 900
    assert found["rlhf_stage_tokens_per_second", ""] == 0
    assert found["rlhf_stage_metric", "loss"] == 0.5
    assert math.isnan(found["rlhf_stage_metric", "rewards/margins"])
    assert found["rlhf_stage_metric", "kl"] == math.inf


def test_labels_come_back_as_they_were(tmp_path: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    recipe = 'a "tiny"\\one\n'
    metrics = StageMetrics(Workspace(tmp_path), "dpo", {"recipe": recipe})
    metrics.write(Progress(1, 1))
    text = (tmp_path / "metrics" / "dpo.prom").read_text()
    labels = [sample.labels for family in text_string_to_metric_families(text) for sample in family.samples]
    assert labels
    assert all(one == {"stage": "dpo", "recipe": recipe} for one in labels)


def test_it_is_written_now_and_then_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("flows.monitoring.prometheus.time.monotonic", lambda: now)
    metrics = StageMetrics(Workspace(tmp_path), "sft", {})
    path = tmp_path / "metrics" / "sft.prom"

    def step() -> float:
        return read(path)["rlhf_stage_step", ""]

    metrics.write(Progress(1, 9, tokens=10))
    now = 104.0
    metrics.write(Progress(2, 9, tokens=50))
    assert step() == 1
    now = 108.0
    metrics.write(Progress(3, 9, tokens=90))
    assert step() == 3
    assert read(path)["rlhf_stage_tokens_per_second", ""] == 10  # 80 tokens in 8 seconds
    metrics.write(Progress(9, 9, tokens=90))
    assert step() == 9
    metrics.close()
    assert not path.exists()


def test_several_stages_are_one_page_that_prometheus_reads(tmp_path: Path) -> None:
    """HELP and TYPE of a metric stand once, before the values of all stages: its parser refuses them otherwise."""
    from prometheus_client.parser import text_string_to_metric_families

    space = Workspace(tmp_path)
    for stage, step in (("sft", 2), ("dpo", 3)):
        StageMetrics(space, stage, {"recipe": stage}).write(Progress(step, 9, {"loss": step / 4}))
    page = exposition([gauge("rlhf_service_up", [({"service": "app"}, 1.0)], {}), *stage_families(space)])
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert page.count("# TYPE rlhf_stage_step gauge") == 1
    assert {one.labels["stage"]: one.value for one in families["rlhf_stage_step"].samples} == {"sft": 2, "dpo": 3}
    assert {one.labels["metric"] for one in families["rlhf_stage_metric"].samples} == {"loss"}
    assert families["rlhf_service_up"].samples[0].labels == {"service": "app"}
    assert {path.name for path in space.folder("metrics").iterdir()} == {"sft.prom", "dpo.prom"}  # nothing beside
