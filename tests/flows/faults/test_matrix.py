"""Every kind of stage × every fault, with real processes: the same content on the second try, or a named error in time.

A cell sets aside what the stage made undisturbed, runs it alone (``--only``, all before it cached) and brings the fault
about at a moment drawn over the stage's own length, while the command is stopped and seen to be inside the stage: it
has a folder under ``partial/`` and no artifact. What a fault leaves behind is then taken away, and the same command
must make the same files. Cells that make no sense stand in :func:`reason` with why.
"""

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

from alignment.recipe.load import load_recipe
from alignment.recipe.recipe import Stage
from alignment.recipe.stages.spec import StageSettings
from alignment.workspace import Workspace
from tests.flows.faults.commands import Command
from tests.flows.faults.every_kind import NAMES, write_recipe
from tests.flows.faults.room import Made, MakeRoom, Room, content, full_disk, locked, server_of

pytestmark = pytest.mark.timeout(1800)
IN_TIME = 120.0  # seconds from the fault to the command's end
TRIES = 8  # to meet a stage that lasts a moment
KINDS = (
    "benchmark", "constitution", "distil", "dpo", "evaluate", "grpo", "human_preferences", "judge", "kto", "orpo",
    "overoptimisation", "pair_classifier", "ppo", "preference_file", "preferences", "pretrain", "quantise",
    "rejection_sampling", "reward", "rloo", "sample", "sft", "simpo", "synthesis", "tokenizer", "tournament",
)  # fmt: skip
FAULTS = ("command killed", "worker killed", "sampler killed", "disk full", "server gone", "database locked", "Ctrl-C")
CHANGES = {"worker killed": "stages.{}.workers=2", "sampler killed": "stages.{}.rollout_workers=1"}
NAMED = {
    "disk full": r"No space left on device|database or disk is full|File too large",
    "server gone": r"did not answer|does not answer",
    "database locked": r"database is locked|did not answer",
    "worker killed": r"died|killed",
    "sampler killed": r"died|killed",
    "Ctrl-C": r"stopped; the same command goes on where it stopped",
}


def reason(settings: StageSettings, fault: str) -> str:
    """Why a cell makes no sense; empty where it does."""
    if fault == "worker killed" and settings.spec.sharing == "none":
        return "it runs in the command's process and is given to no worker"
    if fault == "sampler killed" and "rollout_workers" not in type(settings).model_fields:
        return "no worker apart from the learners draws for it"
    return ""


@dataclass(frozen=True)
class Outcome:
    """How a cell went: how the command ended after so many seconds, and what it said last."""

    stage: str
    fault: str
    moment: float  # seconds after the stage began
    code: int | None
    seconds: float
    first: str  # "same content", or the error in its own words
    second: str

    def __str__(self) -> str:
        return (
            f"{self.stage:18} {self.fault:16} at {self.moment:5.2f} s: {self.seconds:5.1f} s, code {self.code}, "
            f"{self.first}; then {self.second}"
        )


def bring_about(fault: str, room: Room, command: Command, held: ExitStack) -> None:
    """The fault itself, while the command is stopped; ``held`` takes it away."""
    if fault == "command killed":
        command.signal(signal.SIGKILL, group=False)
    elif fault == "Ctrl-C":
        command.signal(signal.SIGINT)
    elif fault == "disk full":
        assert room.disk is not None
        held.enter_context(full_disk(room.disk))
    elif fault == "server gone":
        os.killpg(server_of(room.root)["pid"], signal.SIGKILL)
    elif fault == "database locked":
        held.enter_context(locked(room.root))
    else:
        pid = worker(room.root, fault)
        assert pid  # of the worker that was seen while all stood still
        os.kill(pid, signal.SIGKILL)


def worker(root: Path, fault: str) -> int | None:
    """The process that the fault is about, once it is at work."""
    names = ("rollout-0",) if fault == "sampler killed" else ("1", "0")  # the second may have nothing left to do
    for path in (path for name in names for path in root.glob(f"partial/*/ray/workers/{name}.json")):
        try:
            return int(json.loads(path.read_text())["pid"])
        except (OSError, ValueError):
            continue
    return None


def meet(room: Room, stage: str, fault: str, changes: tuple[str, ...], held: ExitStack) -> tuple[Command, float]:
    """A command that met its fault inside the stage, and how long the stage had been going on."""
    draw = random.Random(f"{stage} {fault}")
    delay = draw.uniform(0.0, 0.8) * room.made[stage, *changes].seconds
    about_worker = fault in ("worker killed", "sampler killed")

    def inside() -> bool:
        return room.inside(stage) and not (about_worker and worker(room.root, fault) is None)

    for attempt in range(TRIES):
        command = room.start(stage, *changes)
        while not inside() and not command.ended():
            time.sleep(0.001)
        began = time.monotonic()
        time.sleep(min(delay, 5.0) if not about_worker else draw.uniform(0.0, 1.0) / 3**attempt)
        with command.stopped():
            if not command.ended() and inside():
                bring_about(fault, room, command, held)
                return command, time.monotonic() - began
        assert command.wait(300) == 0, command.said[-3000:]
        room.again(stage)
        delay /= 3
    raise AssertionError(f"{stage} was over {TRIES} times before it could be disturbed")


def try_cell(room: Room, stage: str, fault: str) -> None:
    """One cell, said at once: a matrix takes its time."""
    if fault == "disk full" and room.disk is None:
        pytest.skip("a small disk cannot be mounted by this user")
    try:
        print(outcome_of(room, stage, fault), flush=True)
    except BaseException as error:
        print(f"{stage:18} {fault:16} FAILED: {error}", flush=True)
        raise


def outcome_of(room: Room, stage: str, fault: str) -> Outcome:
    # Of this stage alone: for all of them it would be other keys, and so other inputs.
    changes = (CHANGES[fault].format(stage),) if fault in CHANGES else ()
    with room.without(stage):
        reference(room, stage, changes)
        with ExitStack() as held:
            command, moment = meet(room, stage, fault, changes, held)
            began = time.monotonic()
            code = command.wait(IN_TIME)
            seconds = time.monotonic() - began
            if code is None:
                told = f"{command.said[-3000:]}\n{command.stacks()}"
                command.kill()
                pytest.fail(f"{stage}, {fault}: at work {IN_TIME:.0f} s after the fault, {moment:.1f} s in:\n{told}")
        first = result(room, stage, changes)
        if command.code != 0:
            first = named_error(fault, command, first)
        assert first != "no artifact", f"{stage}, {fault}: code 0 and no artifact"
        again = room.start(stage, *changes)
        assert again.wait(300) == 0, f"{stage}, {fault}: the second try ended {again.code}:\n{again.said[-3000:]}"
        second = result(room, stage, changes)
        assert second == "same content", f"{stage}, {fault}: {second}"
        assert "Traceback" not in again.said, again.said[-3000:]
        return Outcome(stage, fault, moment, code, seconds, first, second)


def reference(room: Room, stage: str, changes: tuple[str, ...]) -> None:
    """Makes what the stage makes undisturbed under these changes, once. Sums of several workers are their own."""
    if (stage, *changes) in room.made:
        return
    if load_recipe(room.recipe).stages[stage].spec.sharing == "pieces":
        room.made[stage, *changes] = room.made[(stage,)]
        return
    command = room.start(stage, *changes)
    assert command.wait(300) == 0, command.said[-3000:]
    artifact = room.newest(stage)
    assert artifact is not None
    room.made[stage, *changes] = Made(content(artifact), artifact.seconds)
    room.again(stage)


def result(room: Room, stage: str, changes: tuple[str, ...]) -> str:
    """Whether the stage's artifact is what it is undisturbed, and whole."""
    artifact = room.newest(stage)
    if artifact is None:
        return "no artifact"
    if (problem := Workspace(room.root).damage(artifact)) is not None:
        return problem
    made, wanted = content(artifact), room.made[stage, *changes].content
    differ = sorted(name for name in made.keys() | wanted.keys() if made.get(name) != wanted.get(name))
    return f"{', '.join(differ)} differ" if differ else "same content"


def named_error(fault: str, command: Command, found: str) -> str:
    """The error that the command ended with, in a line of its own; fails where it is none, or a traceback."""
    assert found in ("no artifact", "same content"), f"{fault}: {found}"
    if fault == "command killed":
        assert command.code == -signal.SIGKILL
        return "killed"
    said = command.said
    assert command.code in (1, 2), f"code {command.code}:\n{said[-3000:]}"
    assert "Traceback" not in said, said[-3000:]
    line = next((line for line in said.splitlines() if re.search(NAMED[fault], line)), None)
    assert line is not None, f"{fault} is not named:\n{said[-3000:]}"
    return line.strip()


def stage_name(kind: str) -> str:
    return NAMES.get(kind, kind)


@pytest.fixture(scope="module")
def every_kind(make_recipe: Callable[..., Path], make_room: MakeRoom, tmp_path_factory: Any) -> Room:
    tiny: Path = tmp_path_factory.mktemp("matrix")
    room = make_room(write_recipe(make_recipe, tiny / "recipe"))
    room.prepare()
    return room


@pytest.fixture(scope="module")
def three_kinds(make_recipe: Callable[..., Path], make_room: MakeRoom, tmp_path_factory: Any) -> Room:
    folder: Path = tmp_path_factory.mktemp("few")
    room = make_room(make_recipe(folder / "recipe", stages=("sft", "responses", "preferences")))
    room.prepare()
    return room


def test_the_matrix_has_every_kind(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """A kind that is added is disturbed too, and none is left out of a fault but for a reason that its spec gives."""
    known = {get_args(kind.model_fields["kind"].annotation)[0] for kind in get_args(get_args(Stage)[0])}
    assert known == set(KINDS)
    stages = load_recipe(write_recipe(make_recipe, tmp_path)).stages
    assert {stage_name(settings.kind) for settings in stages.values()} == set(stages)
    left_out = {(s.kind, fault) for s in stages.values() for fault in FAULTS if reason(s, fault)}
    alone = {
        "constitution", "distil", "human_preferences", "overoptimisation", "preference_file", "preferences", "quantise",
        "rejection_sampling", "synthesis", "tokenizer",
    }  # fmt: skip
    assert left_out == {(kind, "worker killed") for kind in alone} | {
        (kind, "sampler killed") for kind in set(KINDS) - {"ppo", "grpo", "rloo"}
    }


@pytest.mark.parametrize(
    ("stage", "fault"), [("sft", "command killed"), ("responses", "disk full"), ("preferences", "Ctrl-C")]
)
def test_a_few_cells(three_kinds: Room, stage: str, fault: str) -> None:
    try_cell(three_kinds, stage, fault)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_cell(every_kind: Room, kind: str, fault: str) -> None:
    stage = stage_name(kind)
    if why := reason(load_recipe(every_kind.recipe).stages[stage], fault):
        print(f"{stage:18} {fault:16} left out: {why}")
        return
    try_cell(every_kind, stage, fault)
