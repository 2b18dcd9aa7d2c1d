"""What two runs differ in: settings, data, artifacts and metrics."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from alignment.recipe import yaml_file
from flows.run_record import read_record
from flows.runs import RunSummary, read_report, summarise

Setting = str | int | float | bool | None
ENDS = (".low", ".high")  # of a metric's 95 % interval, where a stage gives one: metrics of their own in its artifact


class SettingChange(BaseModel):
    """A setting by its dotted name; None where a run does not have it, or it is null."""

    setting: str
    a: Setting
    b: Setting


class DataChange(BaseModel):
    """A data file by what it is for: where it was and its digest when each run began; None where a run read none."""

    name: str
    a: str | None
    b: str | None
    a_digest: str | None
    b_digest: str | None


class StageChange(BaseModel):
    """What each run made at a stage, as ``name@version:digest``; None where it made nothing."""

    stage: str
    a: str | None
    b: str | None


class MetricValue(BaseModel):
    """A metric with the ends of its 95 % interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


class MetricChange(BaseModel):
    """A metric of a stage, and ``difference`` = b - a where both have it.

    ``intervals`` says whether the two 95 % intervals have a value in common. Apart, the choice of prompts does not
    explain the difference; that they overlap is no proof of the contrary. None where a run has no interval.
    """

    stage: str
    metric: str
    a: MetricValue | None
    b: MetricValue | None
    difference: float | None
    intervals: Literal["apart", "overlap"] | None


class RunDiff(BaseModel):
    """Two runs, and what differs between them."""

    a: RunSummary
    b: RunSummary
    settings: list[SettingChange]
    data: list[DataChange]
    stages: list[StageChange]
    metrics: list[MetricChange]
    same_metrics: int  # how many are equal in both, to the last bit


def compare(a: Path, b: Path) -> RunDiff:
    """Compares two runs by their folders."""
    metrics = list(_metric_changes(_stages(a), _stages(b)))
    changed = [one for one in metrics if one.a != one.b]
    return RunDiff(
        a=summarise(a), b=summarise(b), settings=_setting_changes(a, b), data=_data_changes(a, b),
        stages=_stage_changes(_stages(a), _stages(b)), metrics=changed, same_metrics=len(metrics) - len(changed),
    )  # fmt: skip


def estimates(metrics: Mapping[str, float]) -> dict[str, MetricValue]:
    """A stage's metrics, each with its interval; those with one come first.

    The ends of ``accuracy``, or of ``win_rate.base.rubric.value``, are those names with .low and .high in place of
    ``.value``; such a metric is called without ``.value`` here.
    """
    stems = {name: name.removesuffix(".value") for name in metrics}
    whole = {name: stem for name, stem in stems.items() if all(stem + end in metrics for end in ENDS)}
    ends = {stem + end for stem in whole.values() for end in ENDS}
    found = {
        whole.get(name, name): MetricValue(
            value=value, low=metrics[whole[name] + ENDS[0]], high=metrics[whole[name] + ENDS[1]]
        )
        if name in whole
        else MetricValue(value=value)
        for name, value in metrics.items()
        if name not in ends
    }
    return dict(sorted(found.items(), key=lambda item: item[1].low is None))


def _setting_changes(a: Path, b: Path) -> list[SettingChange]:
    first, second = _settings(a), _settings(b)
    names = [*first, *(name for name in second if name not in first)]
    changed = [name for name in names if first.get(name) != second.get(name)]
    return [SettingChange(setting=name, a=first.get(name), b=second.get(name)) for name in changed]


def _settings(folder: Path) -> dict[str, Setting]:
    """A run's settings by their dotted names, less the paths of data files: what counts is what was in them."""
    recipe = folder / "recipe.yaml"
    values = dict(_flat(yaml_file.parse(recipe.read_text("utf-8"), str(recipe)).value))
    record = read_record(folder)
    files = {file.path.resolve() for file in record.data.values()} if record else set()

    def is_file(value: Setting) -> bool:
        path = value.partition(":")[0] if isinstance(value, str) and ".py:" in value else value
        return isinstance(path, str) and "/" in path and (folder / path).resolve() in files

    return {name: value for name, value in values.items() if not is_file(value)}


def _flat(value: Any, at: str = "") -> Iterator[tuple[str, Setting]]:
    if not isinstance(value, dict | list):
        yield at, value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, inner in items:
        yield from _flat(inner, f"{at}.{name}" if at else str(name))


def _data_changes(a: Path, b: Path) -> list[DataChange]:
    first, second = _data(a), _data(b)
    names = dict.fromkeys([*first, *second])
    none = (None, None)
    return [
        DataChange(name=name, a=path, b=other, a_digest=digest, b_digest=other_digest)
        for name in names
        for (path, digest), (other, other_digest) in [(first.get(name, none), second.get(name, none))]
        if digest != other_digest
    ]


def _data(folder: Path) -> dict[str, tuple[str, str]]:
    """The paths and digests of a run's data. A rubric goes by the name of its file: the recipe calls it by its path."""
    record = read_record(folder)
    files = record.data.items() if record else ()
    return {name.rpartition("/")[2]: (str(file.path), file.digest) for name, file in files}


def _stages(folder: Path) -> list[dict[str, Any]]:
    return list((read_report(folder) or {}).get("stages", ()))


def _stage_changes(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[StageChange]:
    first, second = _outputs(a), _outputs(b)
    return [
        StageChange(stage=name, a=_reference(first.get(name)), b=_reference(second.get(name)))
        for name in dict.fromkeys([*first, *second])
        if (first.get(name) or {}).get("digest") != (second.get(name) or {}).get("digest")
    ]


def _outputs(stages: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {stage["name"]: stage["outputs"][0] for stage in stages if stage["outputs"]}


def _reference(output: dict[str, Any] | None) -> str | None:
    return f"{output['name']}@{output['version']}:{output['digest'][:12]}" if output else None


def _metric_changes(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> Iterator[MetricChange]:
    first, second = ({stage["name"]: estimates(stage["metrics"]) for stage in stages} for stages in (a, b))
    for stage in dict.fromkeys([*first, *second]):
        ours, theirs = first.get(stage, {}), second.get(stage, {})
        for metric in dict.fromkeys([*ours, *theirs]):
            yield _metric_change(stage, metric, ours.get(metric), theirs.get(metric))


def _metric_change(stage: str, metric: str, a: MetricValue | None, b: MetricValue | None) -> MetricChange:
    intervals: Literal["apart", "overlap"] | None = None
    if a and b and None not in (ends := (a.low, a.high, b.low, b.high)):
        low, high, other_low, other_high = (end for end in ends if end is not None)
        intervals = "apart" if high < other_low or other_high < low else "overlap"
    difference = b.value - a.value if a and b else None
    return MetricChange(stage=stage, metric=metric, a=a, b=b, difference=difference, intervals=intervals)
