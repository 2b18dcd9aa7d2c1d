"""`rlhf up` for real: everything starts and answers, what dies comes back, and at the end nothing is left."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from alignment.workspace import Workspace
from tests.flows.serving.conftest import add_version

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def free_ports(*names: str) -> dict[str, int]:
    """A free port for each name."""
    sockets = {name: socket.socket() for name in names}
    for one in sockets.values():
        one.bind(("127.0.0.1", 0))
    ports = {name: one.getsockname()[1] for name, one in sockets.items()}
    for one in sockets.values():
        one.close()
    return ports


def test_up_and_down(make_recipe: Callable[..., Path], make_room: Callable[..., Any], tmp_path: Path) -> None:
    room = make_room(make_recipe(tmp_path / "recipe", stages=("sft",)), tmp_path / "workspace")
    ports = free_ports("up", "prefect", "mlflow", "app")
    options = [word for name, port in ports.items() for word in ("--port", f"{name}={port}")]
    process = room.start("up", room.recipe, *options)
    page = f"http://127.0.0.1:{ports['up']}"

    def up() -> dict[str, Any] | None:
        status: dict[str, Any] = httpx.get(f"{page}/status.json", timeout=10).json()
        return status if status["up"] else None

    status = room.until(up, 400)
    assert [one["name"] for one in status["services"]] == ["prefect", "mlflow", "app", "worker tiny"]
    assert httpx.get(f"{page}/health", timeout=10).status_code == 200
    assert "<title>rlhf up</title>" in httpx.get(page, timeout=10).text
    assert httpx.get(page, headers={"Host": "evil.example.org"}, timeout=10).status_code == 403
    assert httpx.get(f"{page}/runs/../raters/votes.db", timeout=10).status_code == 404
    for one in status["services"][:3]:
        assert httpx.get(one["url"], follow_redirects=True, timeout=30).status_code == 200, one
    said = (room.root / "up.log").read_text()
    assert re.search(rf"http://localhost:{ports['app']}/invite/\S+", said)  # the first administrator's link
    assert "/invite/" not in (room.root / "services" / "app.log").read_text()

    # `rlhf run` in the same workspace finds these services, and its report is on the page.
    ended = room.run("run", room.recipe)
    assert ended.returncode == 0, ended.stderr
    assert f":{ports['prefect']}" in ended.stdout
    [run] = httpx.get(f"{page}/status.json", timeout=10).json()["runs"]
    assert (run["name"], run["ending"]) == ("tiny-1", "finished")
    assert "tiny-1" in httpx.get(page + run["report"], timeout=10).text
    text = httpx.get(f"{page}/metrics", timeout=10).text
    assert 'rlhf_service_up{service="mlflow"} 1.0' in text
    assert room.run("up", *options).returncode == 2  # one a workspace

    everything = psutil.Process(process.pid).children(recursive=True)
    mlflow = next(one for one in everything if "mlflow" in " ".join(one.cmdline()))
    os.killpg(mlflow.pid, signal.SIGKILL)
    room.until(
        lambda: next((True for one in _services(page) if one["name"] == "mlflow" and one["restarts"] == 1), None), 60
    )
    room.until(up, 200)

    everything = psutil.Process(process.pid).children(recursive=True)
    assert len(everything) >= 4
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == 0
    time.sleep(0.5)
    assert [one for one in everything if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
    left = {path.name for path in (room.root / "services").glob("*.json")} - {"checked.json"}
    assert left == set()
    assert json.loads((room.root / "runs/tiny-1/report.json").read_text())["run"] == "tiny-1"


def test_a_service_that_does_not_come_up_is_said_with_the_end_of_its_log(
    make_recipe: Callable[..., Path], make_room: Callable[..., Any], tmp_path: Path
) -> None:
    room = make_room(make_recipe(tmp_path / "recipe", stages=("sft",)), tmp_path / "workspace")
    room.root.mkdir()
    (room.root / "mlflow.db").write_text("no database" * 100)
    ports = free_ports("up", "prefect", "mlflow", "app")
    process = room.start("up", *(word for name, port in ports.items() for word in ("--port", f"{name}={port}")))

    def said() -> str | None:
        text = (room.root / "up.log").read_text()
        return text if "mlflow           did not come up" in text else None

    text = room.until(said, 120)
    assert f"it ended with 1; it is tried again. Its log is {room.root}/services/mlflow.log" in text
    assert "MLflow's database cannot be read: file is not a database" in text
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == 0


def test_interrupted_in_its_first_seconds_it_comes_up_the_next_time(
    make_recipe: Callable[..., Path], make_room: Callable[..., Any], tmp_path: Path
) -> None:
    """Ctrl-C while MLflow makes its tables: it never came up again, and nothing said so."""
    room = make_room(make_recipe(tmp_path / "recipe", stages=("sft",)), tmp_path / "workspace")
    ports = free_ports("up", "prefect", "mlflow", "app")
    options = [word for name, port in ports.items() for word in ("--port", f"{name}={port}")]
    process = room.start("up", *options)
    room.until(lambda: next(iter(room.root.glob("*mlflow.db*.tmp")), None), 120)
    process.send_signal(signal.SIGINT)
    assert process.wait(90) == 0
    room.start("up", *options)
    page = f"http://127.0.0.1:{ports['up']}"
    room.until(lambda: httpx.get(f"{page}/status.json", timeout=10).json()["up"] or None, 400)


def test_a_version_is_served_beside_the_rest(
    make_recipe: Callable[..., Path], make_room: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openai", reason="transformers' server needs openai: rlhf-flows[serve]")
    room = make_room(make_recipe(tmp_path / "recipe", stages=("sft",)), tmp_path / "workspace")
    ports = free_ports("up", "prefect", "mlflow", "app", "serve")
    options = [word for name, port in ports.items() for word in ("--port", f"{name}={port}")]
    refused = room.run("up", "--serve", "policy@champion", *options)
    assert refused.returncode == 2
    assert refused.stderr.startswith("there is no registered model 'policy'")
    version = add_version(Workspace(room.root), tiny_model, tiny_model)
    process = room.start("up", "--serve", "policy@champion", *options)
    page = f"http://127.0.0.1:{ports['up']}"
    room.until(lambda: httpx.get(f"{page}/status.json", timeout=10).json()["up"] or None, 400)
    assert [one["name"] for one in _services(page)] == ["prefect", "mlflow", "app", "serve"]
    body = {"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 2}
    reply = httpx.post(f"http://127.0.0.1:{ports['serve']}/v1/chat/completions", json=body, timeout=60)
    assert (reply.status_code, reply.headers["x-rlhf-digest"]) == (200, version.candidate.digest)
    everything = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == 0
    assert [one for one in everything if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []


def _services(page: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{page}/status.json", timeout=10).json()["services"]
    return found
