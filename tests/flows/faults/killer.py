"""Runs of one recipe that are ended at moments drawn by a seed, and what is forgotten between them."""

import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.flows.faults.commands import Command
from tests.flows.faults.room import Room, answers
from tests.flows.faults.whole import digests_of, problems, version_of

STAGES = ("base", "sft", "responses", "preferences", "reward", "dpo", "evaluation", "register")
WAYS = ("SIGKILL", "SIGKILL of all", "Ctrl-C", "SIGTERM")  # of all: the guard and the servers too, as a power cut does
USED = ("SIGKILL", "SIGKILL", "Ctrl-C", "SIGTERM")  # where the server stays: it takes as long to start as all the rest
SMALL = {
    "stages.sft.epochs": 1, "stages.sft.checkpoint_every": 1, "stages.responses.limit": 8,
    "stages.responses.sampling.max_new_tokens": 5, "stages.reward.max_length": 48, "stages.reward.cut_chosen": "keep",
    "stages.dpo.cut_chosen": "keep", "stages.dpo.epochs": 1,
    "stages.dpo.batch_size": 8, "stages.reward.batch_size": 8, "stages.evaluation.against": ["sft"],
    "stages.evaluation.limit": 4, "stages.evaluation.kl_prompts": 1, "stages.evaluation.sampling.max_new_tokens": 5,
}  # fmt: skip
WIPES = ("all", "registry", "later stages", "later stages", "nothing")
MADE = ("artifacts", "digests", "partial", "answers", "metrics")


@dataclass
class Tally:
    """What was done to the workspace, and how often it ended whole."""

    kills: Counter[str] = field(default_factory=Counter)  # by phase
    ways: Counter[str] = field(default_factory=Counter)
    whole: int = 0  # runs that ended after at least one kill
    runs: int = 0

    def __str__(self) -> str:
        phases = ", ".join(f"{phase} {count}" for phase, count in sorted(self.kills.items()))
        ways = ", ".join(f"{way} {count}" for way, count in sorted(self.ways.items()))
        return f"{self.kills.total()} kills ({phases}; {ways}), {self.runs} runs, {self.whole} ended whole after kills"


class Killer:
    """Runs the recipe of a room and kills it; ``seed`` decides when and how."""

    def __init__(self, room: Room, seed: int) -> None:
        self.room, self.draw, self.seed = room, random.Random(seed), seed
        self.tally = Tally()
        self.digests: dict[str, str] = {}
        self.version: dict[str, str] = {}
        self.seconds: dict[str, float] = {}  # of an undisturbed run, by what was forgotten before it

    def undisturbed(self, *, from_nothing: bool = True) -> None:
        """Runs once in an empty workspace, ``from_nothing`` or preloaded, and once more without what was made."""
        for how in ("fresh", "all") if from_nothing else ("all",):
            began = time.monotonic()
            ended = self.room.commands.run("run", self.room.recipe, preloaded=how == "all", seconds=600)
            assert ended.code == 0, ended.said[-3000:]
            self.seconds[how] = time.monotonic() - began
            if not self.digests:
                self.digests, self.version = digests_of(self.room.root), version_of(self.room.root)
            if how == "fresh":
                self.forget("all")
        assert (found := problems(self.room.root, self.digests, self.version)) == [], found

    def kill_often(self, kills: int) -> None:
        """So many kills in a workspace that is used on, with commands whose imports are done."""
        wanted, wipe = self.tally.kills.total() + kills, "all"
        self.forget(wipe)
        while self.tally.kills.total() < wanted:
            scale = 1.0 if wipe == "all" else 0.6
            moment = self.draw.uniform(0.0, self.seconds["all"] * scale)
            self.run_until(moment, self.draw.choice(USED), preloaded=True)
            if self.draw.random() < 0.5:
                self.run_whole()
                wipe = self.draw.choice(WIPES)
                self.forget(wipe)
        self.run_whole()

    def kill_from_nothing(self, kills: int) -> None:
        """So many kills, each in an empty workspace and of a process that starts from nothing, servers and all."""
        for _ in range(kills):
            self.empty()
            before = self.tally.kills.total()
            while self.tally.kills.total() == before:
                moment = self.draw.uniform(0.0, self.seconds["fresh"])
                self.run_until(moment, self.draw.choice(WAYS), preloaded=False)
            self.run_whole()

    def run_until(self, moment: float, way: str, *, preloaded: bool) -> None:
        """A run that is ended so many seconds after its start, if it takes so long."""
        self.tally.runs += 1
        command = self.room.commands.start("run", self.room.recipe, preloaded=preloaded)
        if command.wait(moment) is not None:
            assert command.code == 0, f"seed {self.seed}: {command.said[-3000:]}"
            return
        with command.stopped():
            phase = phase_of(self.room.root, command)
            if way.startswith("SIGKILL"):
                command.signal(signal.SIGKILL)
        if way == "SIGKILL of all":
            end_all(self.room.root)
        elif way in ("Ctrl-C", "SIGTERM"):
            command.signal(signal.SIGINT if way == "Ctrl-C" else signal.SIGTERM)
        began = time.monotonic()
        if command.wait(120) is None:
            command.kill()
            raise AssertionError(f"seed {self.seed}: at work 120 s after {way} in {phase}: {command.said[-3000:]}")
        assert "Traceback" not in command.said, f"seed {self.seed}, {way} in {phase}: {command.said[-5000:]}"
        self.tally.kills[phase] += 1
        self.tally.ways[way] += 1
        print(f"{self.tally.kills.total():3d} {way:14} at {moment:5.1f} s in {phase:20} ended {command.code} after "
              f"{time.monotonic() - began:.1f} s", flush=True)  # fmt: skip

    def run_whole(self) -> None:
        """A run that nobody disturbs, after which all is as if nobody ever had."""
        self.tally.runs += 1
        ended = self.room.commands.run("run", self.room.recipe, seconds=400)
        about = f"seed {self.seed}, after {self.tally}"
        assert ended.code == 0, f"{about}:\n{ended.said[-3000:]}"
        assert "Traceback" not in ended.said, ended.said[-3000:]
        assert (found := problems(self.room.root, self.digests, self.version)) == [], f"{about}:\n{found}"
        reports_of(self.room.root, 1)
        self.tally.whole += 1

    def forget(self, what: str) -> None:
        """Removes what a user may remove, while nothing runs."""
        root = self.room.root
        registry = ["registry", "mlruns", "mlflow.db", "mlflow.db.lock"]
        places = {
            "all": [*registry, *MADE, "runs"],
            "made": [*registry, *MADE],
            "registry": registry,
            "later stages": [],
            "nothing": [],
        }[what]
        if what == "later stages":
            later = STAGES[self.draw.randint(1, 6) : 7]
            places = [f"{part}/{stage}" for part in ("artifacts", "digests/artifacts") for stage in later]
        for place in (root / name for name in places):
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)

    def empty(self) -> None:
        """Ends the servers, and removes the workspace."""
        end_all(self.room.root)
        for path in self.room.root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def end_all(root: Path) -> None:
    """SIGKILL to every process of the workspace at once, the way a power cut does it: servers, guards and all."""
    mine = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes()
            about = str(root).encode() in words or f"PREFECT_HOME={root}".encode() in (path / "environ").read_bytes()
            if about and b"preloaded.py" not in words:
                mine.append(int(path.name))
    for pid in mine:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in mine:
        while Path(f"/proc/{pid}").exists() and "State:\tZ" not in _status(pid):
            time.sleep(0.01)


def _status(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    return "State:\tZ"


def reports_of(root: Path, count: int) -> list[dict[str, Any]]:
    """The reports of the newest runs, all of which are whole and promoted."""
    runs = sorted((root / "runs").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))[-count:]
    found = [json.loads((run / "report.json").read_text("utf-8")) for run in runs]
    for report in found:
        assert {stage["status"] for stage in report["stages"]} == {"completed"}
        assert report["gate"]["passed"]
    return found


def phase_of(root: Path, command: Command) -> str:
    """What the command was at when it was stopped, as far as its own log and the workspace say."""
    if any(root.glob(".mlflow.db.*")):
        return "registry's migration"
    runs = [path for path in (root / "runs").glob("*") if path.stat().st_ctime > command.wall]
    if not runs:
        return "server's migration" if not answers(root) else "start"
    log = max(runs, key=lambda path: path.stat().st_ctime) / "log.jsonl"
    if not log.exists():
        return "server's migration" if not answers(root) else "start"
    rows: list[dict[str, Any]] = [json.loads(row) for row in log.read_text("utf-8").splitlines()]
    begun = [str(row["message"]).removesuffix(" begins") for row in rows if str(row["message"]).endswith(" begins")]
    ended = {row.get("stage") for row in rows if row.get("status")}
    if not begun:
        return "start"
    if begun[-1] not in ended:
        return "register" if begun[-1] == "register" else f"stage {begun[-1]}"
    return "report" if begun[-1] == "register" else "between stages"
