"""Runs listed, shown, compared, made anew and stopped, with the real command line."""

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.workspace import Workspace
from flows.command_lines import rlhf_line
from flows.run_record import Process, read_record, this_process
from flows.runs import summarise
from tests.flows.conftest import Room, call

Rlhf = Callable[..., Any]
MakeRecipe = Callable[..., Path]
STAGES = ("sft", "responses", "preferences", "reward")
pytestmark = pytest.mark.timeout(900)  # two runs and a server at the first test: minutes on a busy machine
CHANGE = ("--set", "stages.reward.learning_rate=0.002")


class TwoRuns:
    """A workspace in which a recipe ran twice, the second time with another learning rate of the reward model."""

    def __init__(self, rlhf: Rlhf, recipe: Path, root: Path) -> None:
        self.rlhf, self.recipe, self.root = rlhf, recipe, root
        self.ended = [self("run", recipe), self("run", recipe, *CHANGE)]

    def __call__(self, *arguments: object) -> Any:
        return self.rlhf(*arguments, "-w", self.root)


@pytest.fixture(scope="module")
def runs(rlhf: Rlhf, make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> TwoRuns:
    folder = tmp_path_factory.mktemp("runs")
    return TwoRuns(rlhf, make_recipe(folder / "recipe", stages=STAGES), folder / "it's a workspace")


def test_the_list_is_newest_first(runs: TwoRuns) -> None:
    assert [ended.code for ended in runs.ended] == [0, 0]
    listed = json.loads(runs("runs", "list", "--json").out)
    assert [(one["run"], one["state"], one["made"], one["cached"]) for one in listed] == [
        ("tiny-2", "completed", 1, 3), ("tiny-1", "completed", 4, 0),
    ]  # fmt: skip
    lines = runs("runs", "list").out.splitlines()
    assert lines[0].split()[:3] == ["run", "state", "began"]
    assert [line.split()[0] for line in lines[1:]] == ["tiny-2", "tiny-1"]


def test_the_difference_is_the_setting_and_what_follows(runs: TwoRuns) -> None:
    diff = json.loads(runs("runs", "diff", "tiny-1", "tiny-2", "--json").out)
    assert diff["settings"] == [{"setting": "stages.reward.learning_rate", "a": 0.001, "b": 0.002}]
    assert diff["data"] == []
    assert [one["stage"] for one in diff["stages"]] == ["reward"]
    assert {one["stage"] for one in diff["metrics"]} == {"reward"}
    artifacts = [json.loads((runs.root / f"artifacts/reward/v{n}/artifact.json").read_text()) for n in (1, 2)]
    for one in diff["metrics"]:
        before, after = (artifact["metrics"][one["metric"]] for artifact in artifacts)
        assert (one["a"]["value"], one["b"]["value"], one["difference"]) == (before, after, after - before)
    text = runs("runs", "diff", "tiny-1", "tiny-2").out
    assert re.search(r"stages\.reward\.learning_rate +0\.001 +0\.002", text)
    assert "the same: data" in text


def test_a_run_knows_its_data(runs: TwoRuns) -> None:
    shown = json.loads(runs("runs", "show", "tiny-1", "--json").out)
    for name in ("prompts", "demonstrations"):
        file = runs.recipe.parent / f"{name}.jsonl"
        assert shown["data"][name] == {"path": str(file), "digest": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert shown["recipe_digest"] == json.loads((runs.root / "runs/tiny-1/report.json").read_text())["recipe_digest"]
    text = runs("runs", "show").out  # the newest
    assert text.startswith("tiny-2 completed")
    assert [line.split()[0] for line in text.splitlines() if "cached" in line] == [
        "base",
        "sft",
        "responses",
        "preferences",
    ]


def test_the_log_of_a_run(runs: TwoRuns) -> None:
    events = [json.loads(line) for line in runs("logs", "tiny-1", "--json").out.splitlines()]
    assert {event["run"] for event in events} == {"tiny-1"}
    ends = {event["stage"]: event["status"] for event in events if "status" in event}
    assert ends == dict.fromkeys(("base", *STAGES), "completed") | {"base": ends["base"]}
    steps = [event for event in events if event.get("stage") == "sft" and "step" in event]
    assert steps[-1]["step"] == steps[-1]["steps"] == 12
    assert "loss" in steps[-1]["metrics"]
    lines = runs("logs", "tiny-1", "--follow").out.splitlines()  # it has ended, so there is nothing to wait for
    assert len(lines) == len(events)
    assert re.fullmatch(r"\d\d:\d\d:\d\d sft: step 12 of 12  loss .*", next(one for one in lines if "12 of 12" in one))


def test_a_stage_is_made_anew_and_what_follows_is_not(runs: TwoRuns) -> None:
    before = Workspace(runs.root).artifact("sft", 1)
    ended = runs("run", runs.recipe, "--refresh", "sft")
    assert ended.code == 0
    report = json.loads((runs.root / "runs/tiny-3/report.json").read_text())
    assert {stage["name"]: stage["cached"] for stage in report["stages"]} == {
        "base": True, "sft": False, "responses": True, "preferences": True, "reward": True,
    }  # fmt: skip
    anew = Workspace(runs.root).artifact("sft", 2)
    assert (anew.key, anew.digest) == (before.key, before.digest)  # on a processor the same bits
    assert anew.work_seconds > 0
    assert json.loads((runs.root / "runs/tiny-3/report.json").read_text())["stages"][1]["outputs"][0]["version"] == 2


def test_a_plan_says_what_the_cache_holds(runs: TwoRuns) -> None:
    def cache(*options: object) -> dict[str, tuple[str, str | None]]:
        plan = json.loads(runs("plan", runs.recipe, "--on", "cpu", "--json", *options).out)
        return {stage["name"]: stage["cache"] for stage in plan["stages"]}

    assert cache() == dict.fromkeys(STAGES, "cached")
    assert cache("--set", "stages.reward.epochs=2") == dict.fromkeys(STAGES, "cached") | {"reward": "new"}
    assert cache("--set", "stages.sft.epochs=5") == dict.fromkeys(STAGES, "unknown") | {"sft": "new"}
    assert "from the cache: sft v" in runs("plan", runs.recipe, "--on", "cpu").out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("runs", "diff", "tiny-1", "tny-2"), "did you mean tiny-2?"),
        (("runs", "show", "zzz"), "the newest are: "),
        (("report", "tiny1"), "did you mean tiny-1?"),
        (("logs", "tiny_2"), "did you mean tiny-2?"),
        (("stop", "tiny-1"), "tiny-1 is not under way: it is completed"),
    ],
)
def test_a_mistyped_run(runs: TwoRuns, arguments: tuple[str, ...], line: str) -> None:
    ended = runs(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert line in ended.err


def test_a_mistyped_stage_and_recipe(runs: TwoRuns) -> None:
    for option in ("--only", "--from", "--refresh"):
        ended = runs("run", runs.recipe, option, "rewrd")
        assert (ended.code, ended.err) == (2, f"{option}: no stage 'rewrd' in the recipe; did you mean reward?\n")
    ended = runs("run", runs.recipe, "--only", "reward", "--refresh", "sft")
    assert ended.err == "--refresh: stage sft is not run at all; leave sft out here, or ask for it there\n"
    assert call("check", "quickstrt").err == "no recipe 'quickstrt'; did you mean quickstart?\n"
    near = runs.recipe.with_name("tinny.yaml")
    assert call("check", near).err == f"no recipe '{near}'; did you mean {runs.recipe}?\n"


def test_a_workspace_without_runs(tmp_path: Path) -> None:
    assert call("runs", "list", "-w", tmp_path, "--json").out.strip() == "[]"
    assert call("runs", "show", "-w", tmp_path / "none").code == 2
    assert list(tmp_path.iterdir()) == []


def test_the_version() -> None:
    from importlib.metadata import version

    assert call("--version").out == f"rlhf-flows {version('rlhf-flows')}\n"


def test_a_shell_completes_commands_recipes_and_runs(runs: TwoRuns, tmp_path: Path) -> None:
    def completed(*words: str) -> set[str]:
        environment = {**os.environ, "_RLHF_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(["rlhf", *words]),
                       "COMP_CWORD": str(len(words)), "PYTHONPATH": str(Path(__file__).parents[3]),
                       "RLHF_WORKSPACE": str(runs.root)}  # fmt: skip
        program = "import sys; sys.argv = ['rlhf']; from flows.cli import main; main()"
        ended = subprocess.run([sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True,
                               text=True, check=False)  # fmt: skip
        return set(ended.stdout.split())

    (tmp_path / "quick.yaml").touch()
    assert {"runs", "run", "restore"} <= completed("r")
    assert completed("check", "quick") == {"quick.yaml", "quickstart"}
    assert completed("runs", "show", "tiny-") >= {"tiny-1", "tiny-2"}


def test_a_line_is_read_by_a_shell_as_it_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLHF_WORKSPACE", raising=False)
    odd = tmp_path / "it's a $HOME; `x`"
    said = subprocess.run(["sh", "-c", f"printf '%s\\n' {rlhf_line('chat', 'a b', workspace=odd)}"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert said.stdout.splitlines() == ["rlhf", "chat", "a b", "-w", str(odd)]
    default = tmp_path / "workspace"
    assert shlex.split(rlhf_line("chat", workspace=default))[-2:] == ["-w", str(default)]
    assert "-w" not in shlex.split(rlhf_line("chat", workspace=default, here=True))
    monkeypatch.setenv("RLHF_WORKSPACE", str(default))  # perhaps for that one command alone
    assert shlex.split(rlhf_line("chat", workspace=default, here=True))[-2:] == ["-w", str(default)]


SERVING = """
import sys, time
from pathlib import Path
from flows.run_record import write_record
write_record(Path(sys.argv[1]), {})
time.sleep(120)
"""


def test_stop_ends_the_process_that_works_on_the_run(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine-1"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("name: mine\n")
    process = subprocess.Popen([sys.executable, "-c", SERVING, str(run)], cwd=Path(__file__).parents[3])
    end = time.monotonic() + 60
    while not (run / "started.json").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert summarise(run).state == "running"
    ended = call("stop", "mine-1", "-w", tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert process.wait(timeout=10) == -signal.SIGTERM
    assert summarise(run).state == "interrupted"
    assert "mine-1 is not under way: it is interrupted" in call("stop", "mine-1", "-w", tmp_path).err


def test_a_process_id_that_was_given_again_is_another_process() -> None:
    ours = this_process()
    assert ours.alive
    assert not Process(pid=ours.pid, born=ours.born + 1, place=ours.place).alive
    elsewhere = Process(pid=ours.pid, born=ours.born, place="another machine")
    assert (elsewhere.here, elsewhere.alive) == (False, False)


@pytest.mark.slow
def test_a_run_is_stopped_with_a_checkpoint_and_goes_on(
    make_recipe: MakeRecipe, make_room: Callable[[Path, Path], Room], tmp_path: Path
) -> None:
    from alignment.training.checkpoints import COMPLETE

    changes = {"stages.sft.epochs": 200, "stages.sft.checkpoint_every": 100_000}
    room = make_room(make_recipe(tmp_path / "recipe", stages=("sft",), changes=changes), tmp_path / "w")
    process = room.start("run", room.recipe)
    room.until(lambda: re.search(r"step \d+ of 600", (room.root / "runs/tiny-1/log.jsonl").read_text()), 300)
    ended = call("stop", "tiny-1", "-w", room.root)
    assert (ended.code, ended.err) == (0, "")
    assert process.wait(timeout=10) == 143
    assert list(room.root.glob(f"partial/*/checkpoints/checkpoint-*/{COMPLETE}"))
    again = re.search(r"^go on with +(.*)$", ended.out, re.MULTILINE)
    assert again is not None
    assert str(room.root / "runs/tiny-1/recipe.yaml") in shlex.split(again[1])
    assert summarise(room.root / "runs/tiny-1").state == "interrupted"
    plan = json.loads(room.run("plan", room.recipe, "--on", "cpu", "--json").stdout)
    assert plan["stages"][0]["cache"] == "unfinished"


@pytest.mark.slow
def test_a_run_of_a_deployment_is_cancelled(
    make_recipe: MakeRecipe, make_room: Callable[[Path, Path], Room], tmp_path: Path
) -> None:
    changes = {"stages.sft.epochs": 2000, "stages.sft.checkpoint_every": 100_000}
    room = make_room(make_recipe(tmp_path / "recipe", stages=("sft",), changes=changes), tmp_path / "w")
    room.start("deploy", room.recipe)
    [deployment] = room.until(lambda: room.post("/deployments/filter", {}) or None, 200)
    room.post(f"/deployments/{deployment['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})
    room.until(lambda: re.search(r"step \d+ of ", (room.root / "runs/tiny-1/log.jsonl").read_text()), 300)
    record = read_record(room.root / "runs" / "tiny-1")
    assert record is not None
    assert record.flow_run is not None
    ended = call("stop", "tiny-1", "-w", room.root, "--json")
    assert json.loads(ended.out) == {"run": "tiny-1", "stopped": True, "by": "cancellation"}

    def state() -> str | None:
        flows = room.post("/flow_runs/filter", {"flow_runs": {"id": {"any_": [record.flow_run]}}})
        return "CANCELLED" if flows[0]["state"]["type"] == "CANCELLED" else None

    assert room.until(state, 60) == "CANCELLED"


@pytest.mark.slow
def test_the_commands_at_a_runs_end_work_as_printed(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """In a shell, from where the user stands, with a workspace that has to be quoted; those of the report anywhere."""
    program = Path(sys.executable).with_name("rlhf")
    if not program.exists():
        pytest.skip("the command rlhf is not installed beside this Python")
    make_recipe(tmp_path / "recipe")
    hidden = ("PREFECT_API_URL", "PREFECT_HOME", "RLHF_WORKSPACE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])

    def shell(line: str, folder: Path, path: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", "-c", line], cwd=folder, env={**environment, "PATH": path}, capture_output=True,
                              text=True, check=False, stdin=subprocess.DEVNULL)  # fmt: skip

    plain = environment["PATH"]
    ended = shell(f'{shlex.quote(str(program))} run recipe/tiny.yaml -w "it\'s here"', tmp_path, plain)
    assert ended.returncode == 0, ended.stderr
    printed = dict(re.findall(r"^(try it|stop dashboard) +(.*)$", ended.stdout, re.MULTILINE))
    report = json.loads((tmp_path / "it's here" / "runs" / "tiny-1" / "report.json").read_text())
    lines = [(command["line"], tmp_path / "recipe", f"{program.parent}:{plain}") for command in report["commands"]]
    lines = [(printed["try it"], tmp_path, plain), *lines, (printed["stop dashboard"], tmp_path, plain)]
    assert len(lines) == 5
    for line, folder, path in lines:
        ended = shell(line, folder, path)
        assert ended.returncode == 0, (line, ended.stderr)
