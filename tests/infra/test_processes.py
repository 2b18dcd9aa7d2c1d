"""The very commands of compose.yaml, run as processes where no container engine is: each starts and becomes healthy.

Only what a container would bring is put in its place: host names, ports, the folder of the volume, the secrets' files,
and SQLite for the PostgreSQL server. Health is what the file's own checks say.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
COMPOSE: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "infra" / "compose.yaml").read_text("utf-8"))
PORTS = {"4200": "prefect", "5000": "mlflow", "7860": "app", "6379": "ray-head"}


class Machine:
    """One machine in which the services of compose.yaml are processes."""

    def __init__(self, root: Path, recipe: Path) -> None:
        self.root, self.recipe = root, recipe
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.ports: dict[str, int] = {}
        sockets = {port: socket.socket() for port in PORTS}
        for port, one in sockets.items():
            one.bind(("127.0.0.1", 0))
            self.ports[port] = one.getsockname()[1]
        for one in sockets.values():
            one.close()
        (root / "workspace").mkdir()
        (root / "secrets").mkdir()
        for name in ("postgres_password", "metrics_token"):
            (root / "secrets" / name).write_text(f"the {name}".replace(" ", "-"))

    def here(self, text: str) -> str:
        """A word of the file, as it is to be on this machine."""
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text.replace("$$", "$"))
        text = re.sub(r"postgresql\+psycopg://[^\"]*", f"sqlite:///{self.root}/votes.db", text)
        text = text.replace("/run/secrets", f"{self.root}/secrets").replace("0.0.0.0", "127.0.0.1")
        text = text.replace("/workspace", f"{self.root}/workspace")
        for port, host in PORTS.items():
            text = text.replace(f"{host}:{port}", f"127.0.0.1:{self.ports[port]}")
            text = re.sub(rf"(?<!\d){port}(?!\d)", str(self.ports[port]), text)
        return text

    def environment(self, service: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
        kept["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"
        own = {name: self.here(str(value)) for name, value in COMPOSE["services"][service]["environment"].items()}
        # What the image sets (infra/Dockerfile), and what keeps a test's processes small.
        image = {"RLHF_WORKSPACE": f"{self.root}/workspace", "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        return kept | image | {"OMP_NUM_THREADS": "1", "RAY_agent_register_timeout_ms": "120000"} | own

    def start(self, service: str, **changes: str) -> None:
        settings = COMPOSE["services"][service]
        words = [self.here(str(word)) for word in [*settings.get("entrypoint", []), *settings["command"]]]
        environment = self.environment(service) | changes
        Path(environment["HOME"]).mkdir(parents=True, exist_ok=True)
        log = (self.root / f"{service}.log").open("ab")
        self.running[service] = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
            cwd=self.root / "workspace",
        )  # fmt: skip

    def healthy(self, service: str, seconds: float) -> None:
        """Runs the service's own check until it says yes."""
        check = [self.here(str(word)) for word in COMPOSE["services"][service]["healthcheck"]["test"][1:]]
        end = time.monotonic() + seconds
        while True:
            ended = subprocess.run(check, capture_output=True, env=self.environment(service), timeout=60, check=False)
            if ended.returncode == 0:
                return
            log = (self.root / f"{service}.log").read_text("utf-8", "replace")[-3000:]
            assert self.running[service].poll() is None, log
            assert time.monotonic() < end, log + ended.stderr.decode()
            time.sleep(0.5)

    def end(self) -> None:
        for process in reversed(self.running.values()):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(40)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def machine(make_recipe: Callable[..., Path], tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path, make_recipe(tmp_path / "recipe", stages=("sft",)))
    yield made
    made.end()


def test_every_service_of_ours_becomes_healthy(machine: Machine) -> None:
    for service in ("prefect", "mlflow", "ray-head"):
        machine.start(service)
    for service in ("prefect", "mlflow", "ray-head"):
        machine.healthy(service, 240)
    machine.start("app")
    machine.start("worker", RLHF_RECIPE=str(machine.recipe))
    machine.healthy("app", 120)
    machine.healthy("worker", 240)
    page = f"http://127.0.0.1:{machine.ports['7860']}/metrics"
    assert httpx.get(page, timeout=20).status_code == 404
    shown = httpx.get(page, headers={"Authorization": "Bearer the-metrics_token"}, timeout=20)
    assert "rlhf_votes_total 0.0" in shown.text
    deployment = f"http://127.0.0.1:{machine.ports['4200']}/api/deployments/name/recipe/tiny"
    end = time.monotonic() + 200
    while True:  # the worker asks for work
        answer = httpx.get(deployment, timeout=20)
        if answer.status_code == 200 and answer.json()["status"] == "READY":
            break
        log = (machine.root / "worker.log").read_text("utf-8", "replace")[-3000:]
        assert time.monotonic() < end, log
        time.sleep(1)
