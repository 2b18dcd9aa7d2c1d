"""Two runs compared, from what they left on the disk: every figure here is written by hand."""

import json
from pathlib import Path
from typing import Any

import yaml

from flows.run_diff import MetricValue, compare, estimates
from flows.run_record import DataFile, RunRecord, this_process


def leave(folder: Path, *, recipe: dict[str, Any], data: dict[str, tuple[str, str]], stages: list[Any]) -> Path:
    """Writes a run's folder."""
    from datetime import UTC, datetime

    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    files = {name: DataFile(path=Path(path), digest=digest) for name, (path, digest) in data.items()}
    record = RunRecord(started=datetime(2026, 11, 1, tzinfo=UTC), process=this_process(), data=files)
    (folder / "started.json").write_text(record.model_dump_json())
    report = {
        "recipe_name": recipe["name"], "started": "2026-11-01T10:00:00+00:00", "seconds": 9.0, "gate": None,
        "registered": None,
        "stages": [
            {"name": name, "kind": kind, "status": "completed", "cached": False, "seconds": 1.0, "error": "",
             "metrics": metrics, "outputs": [{"name": name, "version": version, "digest": digest}]}
            for name, kind, version, digest, metrics in stages
        ],
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def recipe(prompts: str, rate: float, *, lora: dict[str, int] | None) -> dict[str, Any]:
    return {
        "name": "r", "data": {"prompts": prompts, "held_out": 0.2},
        "stages": {"dpo": {"kind": "dpo", "learning_rate": rate, "lora": lora},
                   "evaluation": {"kind": "evaluate", "against": ["base", "sft"]}},
    }  # fmt: skip


def test_what_differs_and_nothing_else(tmp_path: Path) -> None:
    first = leave(
        tmp_path / "r-1",
        recipe=recipe("/data/old.jsonl", 0.1, lora={"rank": 4}),
        data={"prompts": ("/data/old.jsonl", "a" * 64), "/data/rubric.yaml": ("/data/rubric.yaml", "c" * 64)},
        stages=[
            ("sft", "sft", 1, "1" * 64, {"loss": 2.0}),
            ("evaluation", "evaluate", 1, "2" * 64,
             {"kl": 3.0, "win_rate.base": 0.5, "win_rate.base.low": 0.4, "win_rate.base.high": 0.6,
              "length": 10.0, "length.low": 9.0, "length.high": 11.0, "only_before": 1.0}),
        ],
    )  # fmt: skip
    second = leave(
        tmp_path / "r-2",
        recipe=recipe("/data/new.jsonl", 0.2, lora=None),
        data={"prompts": ("/data/new.jsonl", "b" * 64), "/elsewhere/rubric.yaml": ("/elsewhere/rubric.yaml", "c" * 64)},
        stages=[
            ("sft", "sft", 1, "1" * 64, {"loss": 2.0}),
            ("evaluation", "evaluate", 2, "3" * 64,
             {"kl": 3.0, "win_rate.base": 0.75, "win_rate.base.low": 0.61, "win_rate.base.high": 0.9,
              "length": 11.5, "length.low": 10.5, "length.high": 12.5}),
        ],
    )  # fmt: skip
    diff = compare(first, second)
    assert [(one.setting, one.a, one.b) for one in diff.settings] == [
        ("stages.dpo.learning_rate", 0.1, 0.2),
        ("stages.dpo.lora.rank", 4, None),  # a mapping there, null here
    ]
    assert [(one.name, one.a_digest, one.b_digest) for one in diff.data] == [("prompts", "a" * 64, "b" * 64)]
    assert [(one.stage, one.a, one.b) for one in diff.stages] == [
        ("evaluation", f"evaluation@1:{'2' * 12}", f"evaluation@2:{'3' * 12}")
    ]
    metrics = {one.metric: one for one in diff.metrics}
    assert list(metrics) == ["win_rate.base", "length", "only_before"]
    assert metrics["win_rate.base"].a == MetricValue(value=0.5, low=0.4, high=0.6)
    assert metrics["win_rate.base"].difference == 0.25
    assert metrics["win_rate.base"].intervals == "apart"  # 0.60 < 0.61
    assert metrics["length"].intervals == "overlap"  # 10.5 < 11
    assert metrics["only_before"].b is None
    assert metrics["only_before"].difference is None
    assert diff.same_metrics == 2  # loss and kl


def test_a_run_is_like_itself(tmp_path: Path) -> None:
    run = leave(
        tmp_path / "r-1", recipe=recipe("p", 0.1, lora=None), data={}, stages=[("sft", "sft", 1, "1", {"a": 1.0})]
    )
    diff = compare(run, run)
    assert (diff.settings, diff.data, diff.stages, diff.metrics, diff.same_metrics) == ([], [], [], [], 1)


def test_a_win_rate_keeps_its_value_under_a_name_of_its_own() -> None:
    metrics = {"win.value": 0.5, "win.low": 0.4, "win.high": 0.6, "win.length_controlled": 0.55}
    assert estimates(metrics) == {
        "win": MetricValue(value=0.5, low=0.4, high=0.6), "win.length_controlled": MetricValue(value=0.55),
    }  # fmt: skip


def test_an_interval_needs_both_its_ends() -> None:
    assert estimates({"a": 1.0, "a.low": 0.5, "b": 2.0, "b.low": 1.0, "b.high": 3.0}) == {
        "b": MetricValue(value=2.0, low=1.0, high=3.0), "a": MetricValue(value=1.0), "a.low": MetricValue(value=0.5),
    }  # fmt: skip
