"""The client for the servers beside a run, on real sockets: proxies, refusals, silence, and servers that are named."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import InputError
from flows.services import servers as services
from flows.services.http_client import UnreachableError, answers, ask, is_loopback


class Receiver:
    """An HTTP server that answers ``status`` and remembers what it was asked, and with which key."""

    def __init__(self, status: int = 200) -> None:
        self.asked: list[tuple[str, str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.asked.append((self.command, self.path, self.headers.get("Authorization")))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(b"true")

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def dead_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        yield taken.getsockname()[1]


@pytest.fixture
def silent_port() -> Iterator[int]:
    with socket.socket() as listening:  # takes connections and never says a word
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield listening.getsockname()[1]


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:4200/api", True), ("http://localhost", True), ("http://[::1]:80/", True),
        ("http://127.9.9.9/", True), ("http://10.0.0.1", False), ("http://localhost.example.org", False),
        ("http://example.org/127.0.0.1", False),
    ],
)  # fmt: skip
def test_what_is_loopback(url: str, loopback: bool) -> None:
    assert is_loopback(url) == loopback


def test_loopback_ignores_proxies(receiver: Receiver, dead_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{dead_port}")
    monkeypatch.setenv("no_proxy", "")
    assert ask(f"{receiver.url}/health").body == b"true"
    assert answers(f"{receiver.url}/health")


def test_other_libraries_ignore_proxies_on_loopback_too(receiver: Receiver, dead_port: int, tmp_path: Path) -> None:
    """Prefect's client is httpx, MLflow's is requests: both read the environment that every command sets up."""
    code = (
        "import sys, pathlib; from alignment.workspace import Workspace\n"
        "from flows.services.servers import quiet_environment\n"
        "quiet_environment(Workspace(pathlib.Path(sys.argv[1])))\n"
        "import httpx, requests, os\n"
        "print(httpx.get(sys.argv[2]).status_code, requests.get(sys.argv[2]).status_code, os.environ['no_proxy'])"
    )
    proxy = f"http://127.0.0.1:{dead_port}"
    environment = os.environ | {"http_proxy": proxy, "HTTP_PROXY": proxy, "no_proxy": "corp.example"}
    ended = subprocess.run([sys.executable, "-c", code, tmp_path, receiver.url], capture_output=True, text=True,
                           env=environment, check=False)  # fmt: skip
    assert ended.stdout.split() == ["200", "200", "corp.example,localhost,127.0.0.1,::1"], ended.stderr


def test_elsewhere_goes_through_the_proxy(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", receiver.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert ask("http://prefect.invalid/api/health").ok
    assert receiver.asked == [("GET", "http://prefect.invalid/api/health", None)]


def test_a_dead_proxy_is_named(dead_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{dead_port}")
    monkeypatch.setenv("no_proxy", "localhost")
    proxy = rf"through the proxy 127\.0\.0\.1:{dead_port}, which http_proxy names"
    with pytest.raises(UnreachableError, match=proxy) as told:
        ask("http://prefect.invalid/api/health")
    assert "secret" not in str(told.value)


def test_silence_ends(silent_port: int) -> None:
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=r"no answer in 0\.3 s"):
        ask(f"http://127.0.0.1:{silent_port}/", timeout=0.3)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("given", "health"),
    [
        ("http://127.0.0.1:4200/api", "http://127.0.0.1:4200/api/health"),
        ("http://127.0.0.1:4200/api/", "http://127.0.0.1:4200/api/health"),
        # https://docs.prefect.io/v3/api-ref: the account's and workspace's path is part of the interface's address.
        ("https://api.prefect.cloud/api/accounts/A/workspaces/W", "https://api.prefect.cloud/api/accounts/A/workspaces/W/health"),
        ("https://host/prefect/api", "https://host/prefect/api/health"),
    ],
)  # fmt: skip
def test_a_named_server_is_asked_where_its_interface_is(given: str, health: str) -> None:
    assert services.named_server(given).health == health
    assert services.named_server(given).api == given.rstrip("/")


def test_the_key_goes_with_the_question(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "k3y")
    services.reach("prefect", f"{receiver.url}/api/accounts/a/workspaces/w/health")
    assert receiver.asked == [("GET", "/api/accounts/a/workspaces/w/health", "Bearer k3y")]


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_refuses_is_told_apart_at_once(status: int) -> None:
    refusing = Receiver(status)
    began = time.monotonic()
    with pytest.raises(InputError, match=f"PREFECT_API_URL: prefect's server answers {status} .*PREFECT_API_KEY"):
        services.reach("prefect", f"{refusing.url}/api/health")
    assert time.monotonic() - began < 3
    refusing.server.shutdown()


@pytest.mark.slow  # each waits ten seconds for a server that may yet come
@pytest.mark.parametrize("variable", ["PREFECT_API_URL", "MLFLOW_TRACKING_URI"])
@pytest.mark.parametrize("how", ["dead", "silent", "wrong"])
def test_a_named_server_that_is_not_there_is_said_within_fifteen_seconds(
    make_recipe: Callable[..., Path], tmp_path: Path, dead_port: int, silent_port: int, receiver: Receiver,
    variable: str, how: str,
) -> None:  # fmt: skip
    """The real command, both variables: refused, never answered, and answered by something else."""
    recipe = make_recipe(tmp_path / "recipe", stages=("sft",))
    wrong = Receiver(404)
    port = {"dead": dead_port, "silent": silent_port, "wrong": wrong.port}[how]
    hidden = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PREFECT_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment[variable] = f"http://127.0.0.1:{port}" + ("/api" if variable == "PREFECT_API_URL" else "")
    began = time.monotonic()
    command = [sys.executable, "-m", "flows.cli", "run", str(recipe), "-w", str(tmp_path / "workspace")]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    took = time.monotonic() - began
    wrong.server.shutdown()
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert f"{variable}: " in ended.stderr
    assert f"127.0.0.1:{port}" in ended.stderr
    assert took < 20, f"{took:.1f} s"  # ten of them are the wait; the rest is a busy machine's start of Python
    assert not list((tmp_path / "workspace").glob("runs/*"))
    assert json.dumps(ended.stdout) == '""'
