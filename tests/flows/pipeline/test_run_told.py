"""What the dashboard, the metrics and the receivers of notices say of runs: what is so, and once.

One pipeline with a gate is run twice on a real Prefect server, the second time from the cache, and a third time as a
deployment runs it; other runs are killed, cancelled on the dashboard, and started twice at once.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from alignment.workspace import Workspace
from flows.services.server_outbox import settle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[3]
LONG = {"stages.sft.epochs": 4000, "stages.sft.checkpoint_every": 100000, "stages.sft.schedule": "constant"}


@dataclass
class Story:
    """Three runs of one recipe: what was printed, what a webhook got, and where the server is."""

    root: Path
    api: str
    said: list[str]
    heard: list[dict[str, Any]] = field(default_factory=list)

    def post(self, path: str, body: Any) -> Any:
        return httpx.post(f"{self.api}{path}", json=body, timeout=30).raise_for_status().json()

    def run(self, name: str) -> dict[str, Any]:
        found = [
            one for one in self.post("/flow_runs/filter", {"limit": 200})
            if one["parameters"].get("request", {}).get("workspace") == str(self.root)
            and one["parameters"]["request"]["run"] == name
        ]  # fmt: skip
        [run] = found
        return dict(run)


@pytest.fixture(scope="module")
def story(
    prefect_server: str, make_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("told")
    heard: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    notify = {"webhook": {"url_env": "HOOK_URL"}, "on": ["promoted", "refused", "failed"]}
    recipe = make_recipe(folder / "recipe", changes={"notify": notify})
    root = folder / "workspace"
    environment = os.environ | {
        "HOOK_URL": f"http://127.0.0.1:{receiver.server_address[1]}",
        "PREFECT_API_URL": prefect_server,
    }
    said = []
    for _ in range(2):
        command = [sys.executable, "-m", "flows.cli", "run", str(recipe), "-w", str(root)]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=ROOT)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        said.append(ended.stdout)
    code = (
        "import sys; from pathlib import Path; from alignment.workspace import Workspace\n"
        "from flows.services.servers import quiet_environment\n"
        "quiet_environment(Workspace(Path(sys.argv[2])))\n"
        "from flows.deployment.serve import recipe_flow\n"
        "state = recipe_flow(sys.argv[1], sys.argv[2], return_state=True)\n"
        "print(state.name, state.message)\n"
    )
    served = subprocess.run([sys.executable, "-c", code, str(recipe), str(root)], capture_output=True, text=True,
                            env=environment, check=False, cwd=ROOT)  # fmt: skip
    said.append(served.stdout + served.stderr)
    yield Story(root, prefect_server, said, heard)
    receiver.shutdown()


def test_a_deployments_run_ends_as_what_the_gate_said(story: Story) -> None:
    assert story.said[2].splitlines()[-1].startswith("Promoted policy v1 is the champion"), story.said[2]
    parents = [
        one
        for one in story.post("/flow_runs/filter", {"limit": 200})
        if one["parameters"].get("workspace") == str(story.root)
    ]
    assert [one["state"]["name"] for one in parents] == ["Promoted"]


def test_a_run_killed_as_soon_as_the_server_knows_it_does_not_stay_pending(
    prefect_server: str, make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe, root = make_recipe(tmp_path / "recipe", stages=("sft",)), tmp_path / "workspace"
    command = [sys.executable, "-m", "flows.cli", "run", str(recipe), "-w", str(root)]
    environment = os.environ | {"PREFECT_API_URL": prefect_server}
    run = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True)

    def known() -> list[dict[str, Any]]:
        found = httpx.post(f"{prefect_server}/flow_runs/filter", json={"limit": 200}, timeout=30).raise_for_status()
        return [one for one in found.json() if one["parameters"].get("request", {}).get("workspace") == str(root)]

    while not known():
        assert run.poll() is None
    run.kill()
    run.wait()
    assert [one["state_type"] for one in known()] == ["PENDING"]  # else the kill came too late to show anything
    assert settle(root) == 0
    assert [one["state_type"] for one in known()] == ["CRASHED"]


def test_a_promotion_is_told_once_and_not_from_the_cache(story: Story) -> None:
    assert [(one["run"], one["ending"]) for one in story.heard] == [("tiny-1", "promoted")]
    assert all(story.run(f"tiny-{number}")["state"]["name"] == "Promoted" for number in (1, 2, 3))
    sent = story.post("/events/filter", {"filter": {"event": {"name": ["champion.promoted"]}}})["events"]
    assert [one["payload"]["run"] for one in sent if one["payload"].get("recipe") == "tiny"].count("tiny-1") <= 1
    assert not [one for one in sent if one["payload"].get("run") in ("tiny-2", "tiny-3")]


def test_links_lead_somewhere(story: Story) -> None:
    [news] = story.heard
    assert "file://" not in json.dumps(story.heard)
    assert Path(news["report"]).is_file()  # nobody serves it: the path is said
    run = story.run("tiny-1")
    assert news["dashboard"].endswith(f"/runs/flow-run/{run['id']}")
    rows = story.post("/artifacts/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}, "limit": 200})
    assert rows, "the run shows something"
    assert "file://" not in json.dumps(rows)


def test_the_inputs_of_each_task_are_what_the_stage_is_made_of(story: Story) -> None:
    run = story.run("tiny-1")
    tasks = story.post("/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    names = {task["id"]: task["name"].removesuffix("-0") for task in tasks}
    shown = {
        names[task["id"]]: {
            names[one["id"]] for inputs in task["task_inputs"].values() for one in inputs if "id" in one
        }
        for task in tasks
    }
    stages = [name for name in shown if name not in ("base", "register")]
    wanted = {name: {ref.name for ref in Workspace(story.root).artifact(name, 1).inputs.values()} for name in stages}
    assert len(wanted) == 6
    assert {name: shown[name] for name in wanted} == wanted
    assert shown["base"] == set()
    assert shown["register"] >= {"evaluation", "dpo"}


def test_the_logs_say_what_was_done_with_what_and_how_it_came_out(story: Story) -> None:
    run = story.run("tiny-1")
    logs = story.post("/logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "limit": 200})
    text = "\n".join(one["message"] for one in logs)
    sft = Workspace(story.root).artifact("sft", 1)
    assert f"sft is made of base@1:{sft.inputs['base'].digest[:12]}" in text
    assert '"learning_rate": 0.01' in text
    assert "sft: step 12/12  loss " in text
    assert f"{sft.ref()}, " in text
    assert all(f"{name} {value:.4g}" in text for name, value in sft.metrics.items())
    per_stage = [one for one in logs if one["task_run_id"] is not None]
    assert len({one["task_run_id"] for one in per_stage}) >= 5  # they stand under the tasks that say them


def test_a_killed_run_is_told_as_crashed_and_its_metrics_go(
    make_recipe: Callable[..., Path], make_room: Callable[..., Any], tmp_path: Path
) -> None:
    """SIGKILL, and no further command: whoever looks at the dashboard or at the metrics sees that it is over."""
    room = make_room(make_recipe(tmp_path / "recipe", stages=("sft",), changes=LONG), tmp_path / "workspace")
    process = room.start("run", room.recipe)
    room.until(lambda: True if (room.root / "metrics" / "sft.prom").exists() else None, 300)
    [run] = of(room)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    room.until(lambda: True if of(room, run["id"])[0]["state_type"] == "CRASHED" else None, 30)
    assert "killed" in of(room, run["id"])[0]["state"]["message"]
    assert not list(room.root.glob("metrics/*.prom"))
    assert not list((room.root / "services" / "processes").glob("*.json"))


def test_a_cancel_on_the_dashboard_ends_a_run_of_the_terminal(
    make_recipe: Callable[..., Path], make_room: Callable[..., Any], tmp_path: Path
) -> None:
    room = make_room(make_recipe(tmp_path / "recipe", stages=("sft",), changes=LONG), tmp_path / "workspace")
    process = room.start("run", room.recipe)
    room.until(lambda: True if (room.root / "metrics" / "sft.prom").exists() else None, 300)
    [run] = of(room)
    body = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    room.post(f"/flow_runs/{run['id']}/set_state", body)
    began = time.monotonic()
    assert process.wait(60) == 143
    assert time.monotonic() - began < 30
    assert of(room, run["id"])[0]["state_type"] == "CANCELLED"
    assert list(room.root.glob("partial/*/checkpoints/checkpoint-*/complete"))
    said = (room.root / "run.log").read_text()
    assert "the same command goes on where it stopped" in said
    assert "Traceback" not in said


def test_a_second_run_of_the_same_stage_says_that_it_waits(
    make_recipe: Callable[..., Path], make_room: Callable[..., Any], tmp_path: Path
) -> None:
    changes = {"stages.sft.epochs": 300, "stages.sft.checkpoint_every": 1000}
    room = make_room(make_recipe(tmp_path / "recipe", stages=("sft",), changes=changes), tmp_path / "workspace")
    first = room.start("run", room.recipe)
    room.until(lambda: True if (room.root / "metrics" / "sft.prom").exists() else None, 300)
    second = subprocess.Popen(room.command("run", room.recipe), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, env=room.environment)  # fmt: skip
    assert second.stdout is not None
    words = [line.strip() for line in second.stdout]
    assert second.wait(200) == 0
    assert first.wait(200) == 0
    [waits] = [line for line in words if "sft waits: process" in line]
    assert f"process {first.pid} on " in waits
    [ended] = [line for line in words if line.startswith("sft ") and "waits" not in line]
    assert ended.split()[1] == "cached", ended
    assert len(list(room.root.glob("artifacts/sft/v*"))) == 1


def of(room: Any, identity: str | None = None) -> list[dict[str, Any]]:
    """The runs of a workspace on its server; other workspaces may have theirs there."""
    runs = room.post("/flow_runs/filter", {"limit": 200})
    mine = [one for one in runs if one["parameters"].get("request", {}).get("workspace") == str(room.root)]
    return [one for one in mine if identity in (None, one["id"])]
