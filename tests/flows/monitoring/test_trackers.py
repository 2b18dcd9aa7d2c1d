"""Trackers are read back from what they wrote: MLflow's store, TensorBoard's and Weights & Biases' own files."""

import json
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from alignment.registry.store import connect
from alignment.stage import Progress
from alignment.workspace import Workspace
from flows.monitoring.trackers import CurvePoint, StageTrackers, TrackedStage, Tracker

STAGE = TrackedStage(recipe="tiny", run="tiny-1", name="sft", key="k1", settings={"kind": "sft", "epochs": 2})
Curve = list[tuple[int, float]]


def mlflow_curve(workspace: Workspace, name: str, stage: str = "sft") -> tuple[str, Curve]:
    """The status of the one run of a stage, and a curve's newest value at each step."""
    client = connect(workspace.mlflow_uri)
    experiment = client.get_experiment_by_name("tiny curves")
    [run] = client.search_runs([experiment.experiment_id], filter_string=f"tags.stage = '{stage}'")
    history = sorted(client.get_metric_history(run.info.run_id, name), key=lambda one: (one.step, one.timestamp))
    return run.info.status, list({one.step: (one.step, one.value) for one in history}.values())


def tensorboard_curve(workspace: Workspace, name: str, stage: str = "sft") -> Curve:
    """A curve as TensorBoard shows it: a file that begins anew hides steps from its own first one on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found: dict[int, float] = {}
    for path in sorted((workspace.root / "tensorboard" / "tiny-1" / stage).iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.session_log.status == SessionLog.START:
                found = {step: value for step, value in found.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == name:
                    found[event.step] = value.simple_value
    return sorted(found.items())


def wandb_records(folder: Path) -> Iterator[Any]:
    """The records of an offline run: a log of LevelDB's format after seven bytes of header."""
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    data, place, whole = path.read_bytes(), 7, b""
    while place < len(data):
        block_left = 32768 - place % 32768
        if block_left < 7:
            place += block_left
            continue
        _crc, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def tell(trackers: StageTrackers, steps: Sequence[int], value: Callable[[int], float] = float) -> None:
    for step in steps:
        trackers.log(Progress(step, 10, {"loss": value(step)}))


def test_mlflow_and_tensorboard_have_every_step(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    trackers = StageTrackers(workspace, STAGE, ("mlflow", "tensorboard"))
    tell(trackers, range(1, 6), lambda step: 1 / step)
    trackers.close(failed=False)
    wanted = [(step, pytest.approx(1 / step)) for step in range(1, 6)]
    assert mlflow_curve(workspace, "loss") == ("FINISHED", wanted)
    assert tensorboard_curve(workspace, "loss") == wanted


def test_a_stage_that_goes_on_from_its_checkpoint_goes_on_in_the_same_curves(tmp_path: Path) -> None:
    """Killed after step 4, it begins again after the checkpoint of step 2: no step stands twice."""
    workspace = Workspace(tmp_path)
    first = StageTrackers(workspace, STAGE, ("mlflow", "tensorboard"))
    tell(first, range(1, 5), lambda step: step + 100)
    first.close(failed=True)
    assert mlflow_curve(workspace, "loss")[0] == "FAILED"
    time.sleep(1.1)  # event files are named by the second
    again = StageTrackers(workspace, STAGE, ("mlflow", "tensorboard"))
    tell(again, range(3, 7))
    again.close(failed=False)
    wanted = [(1, 101.0), (2, 102.0), (3, 3.0), (4, 4.0), (5, 5.0), (6, 6.0)]
    assert mlflow_curve(workspace, "loss") == ("FINISHED", wanted)
    assert tensorboard_curve(workspace, "loss") == wanted


def test_weights_and_biases_has_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(
        "wandb", reason="wandb (the extra tracking): where it is installed, TRL imports it in every process"
    )
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers = StageTrackers(Workspace(tmp_path), STAGE, ("wandb",))
    tell(trackers, range(1, 6))
    trackers.close(failed=False)
    records = list(wandb_records(tmp_path / "wandb"))
    [run] = {record.run.display_name for record in records if record.HasField("run")}
    assert run == "sft"
    rows = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [(row["_step"], row["loss"]) for row in rows] == [(step, float(step)) for step in range(1, 6)]
    [ended] = [record.exit.exit_code for record in records if record.HasField("exit")]
    assert ended == 0


class Broken:
    """A tracker that is away after its first batch."""

    def __init__(self, _workspace: Workspace, _stage: TrackedStage) -> None:
        self.batches = 0

    def log(self, points: Sequence[CurvePoint]) -> None:
        raise ConnectionError("away")

    def close(self, *, failed: bool) -> None:
        raise AssertionError("it was told to end after it had failed")


def test_a_tracker_that_fails_is_said_once_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    workspace = Workspace(tmp_path)
    opened: dict[Any, Callable[[Workspace, TrackedStage], Tracker]] = {"wandb": Broken}
    from flows.monitoring.trackers import OPENERS

    trackers = StageTrackers(workspace, STAGE, ("wandb", "tensorboard"), OPENERS | opened)
    tell(trackers, range(1, 4))
    time.sleep(2.5)
    tell(trackers, range(4, 6))
    trackers.close(failed=False)
    assert tensorboard_curve(workspace, "loss") == [(step, float(step)) for step in range(1, 6)]
    assert [record.message for record in caplog.records] == [
        "sft: the tracker wandb is told no more: ConnectionError: away"
    ]


def test_nothing_is_opened_where_nothing_is_named(tmp_path: Path) -> None:
    before = threading.active_count()
    trackers = StageTrackers(Workspace(tmp_path), STAGE, ())
    tell(trackers, range(5))
    assert threading.active_count() == before
    trackers.close(failed=False)
    assert list(tmp_path.iterdir()) == []


def test_a_run_shows_what_its_artifact_holds(rlhf: Any, make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    changes = {"tracking": ["mlflow", "tensorboard"]}
    recipe = make_recipe(tmp_path / "recipe", stages=("sft",), changes=changes)
    ended = rlhf("run", recipe, "-w", tmp_path / "workspace")
    assert (ended.code, ended.err) == (0, "")
    workspace = Workspace(tmp_path / "workspace")
    [artifact] = [one for one in workspace.artifacts() if one.name == "sft"]
    curve = json.loads((Path(artifact.path) / "curves.json").read_text())["loss"]
    wanted = [(step, pytest.approx(value, rel=1e-6)) for step, value in curve]
    status, shown = mlflow_curve(workspace, "loss")
    assert status == "FINISHED"
    assert shown == wanted
    assert tensorboard_curve(workspace, "loss") == wanted
    again = rlhf("run", recipe, "-w", tmp_path / "workspace", "--set", "tracking=[]")
    assert "cached" in again.out  # where curves are shown makes no other artifact
