"""Servers that the user names and that are not there: refused, and taken and never answered. On real sockets."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from alignment.workspace import Workspace
from flows.services import named_servers, probes
from flows.services.probes import file_problem, ray_cluster
from tests.alignment.judges.fake_server import FakeServer, prefers_shorter
from tests.flows.conftest import call

RUBRIC_JUDGE = {"kind": "llm", "form": "pairwise"}
HIDDEN = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RLHF_STORE", "RAY_ADDRESS", "PREFECT_HOME")


class Ports:
    """Ports of this machine's where nobody listens, or where a listener takes connections and never says a word."""

    def __init__(self, stack: ExitStack, *, silent: bool) -> None:
        self.stack, self.silent = stack, silent

    def new(self) -> int:
        taken = self.stack.enter_context(socket.socket())
        taken.bind(("127.0.0.1", 0))
        if self.silent:
            taken.listen(64)
        port: int = taken.getsockname()[1]
        return port


@pytest.fixture(params=["dead", "silent"])
def ports(request: pytest.FixtureRequest) -> Iterator[Ports]:
    with ExitStack() as stack:
        yield Ports(stack, silent=request.param == "silent")


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HIDDEN:
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):  # loopback addresses are not asked through it
        monkeypatch.setenv(name, "http://proxy.invalid:1")


def environment_names(ports: Ports) -> dict[str, str]:
    """Every variable that names a server, with an address where none is."""
    return {
        "PREFECT_API_URL": f"http://127.0.0.1:{ports.new()}/api",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{ports.new()}",
        "RLHF_STORE": f"postgresql://rlhf:s3cret@127.0.0.1:{ports.new()}/votes",
    }


def databases(ports: Ports) -> dict[str, str]:
    """Databases in the place of servers."""
    return {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://u:s3cret@127.0.0.1:{ports.new()}/prefect",
        "MLFLOW_TRACKING_URI": f"postgresql+psycopg://u:s3cret@127.0.0.1:{ports.new()}/mlflow",
        "RAY_ADDRESS": f"127.0.0.1:{ports.new()}",
    }


def judged(url: str) -> dict[str, Any]:
    return {
        "kind": "judge", "responses": "responses",
        "judge": {"kind": "generative", "form": "pairwise", "endpoint": {"url": url, "model": "m"}},
    }  # fmt: skip


def test_every_address_is_said_in_its_line_and_all_within_fifteen_seconds(
    make_recipe: Callable[..., Path], tmp_path: Path, ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = environment_names(ports)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    vllm, judge, ray = ports.new(), ports.new(), ports.new()
    recipe = make_recipe(
        tmp_path / "recipe",
        stages=("sft", "responses"),
        changes={
            "resources.vllm": {"url": f"http://127.0.0.1:{vllm}"}, "resources.address": f"127.0.0.1:{ray}",
            "stages.judge": judged(f"http://127.0.0.1:{judge}/v1"),
        },
    )  # fmt: skip
    began = time.monotonic()
    ended = call("run", recipe, "--workspace", tmp_path / "w")
    took = time.monotonic() - began
    lines = ended.err.splitlines()
    assert ended.code == 2, ended.err
    expected = [
        *((name, value.partition("//")[2].rpartition("@")[2].partition("/")[0]) for name, value in names.items()),
        ("resources.address", f"127.0.0.1:{ray}"),
        ("resources.vllm.url", f"127.0.0.1:{vllm}"),
        ("stages.judge.judge.endpoint.url", f"127.0.0.1:{judge}"),
    ]
    assert len(lines) == len(expected), ended.err
    for field, address in expected:
        (line,) = [line for line in lines if address in line]
        assert f"{field}: " in line
        assert line.count("; ") == 1
    assert "s3cret" not in ended.err
    assert took < 15
    assert not list((tmp_path / "w").glob("runs/*"))
    assert not (tmp_path / "w" / "services").exists() or not list((tmp_path / "w" / "services").glob("prefect.*"))


def test_databases_and_rays_own_variable(
    make_recipe: Callable[..., Path], tmp_path: Path, ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = databases(ports)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    recipe = make_recipe(tmp_path / "recipe", stages=("sft",), changes={"resources.address": "auto"})
    began = time.monotonic()
    ended = call("run", recipe, "--workspace", tmp_path / "w")
    assert time.monotonic() - began < 15
    assert ended.code == 2, ended.err
    lines = ended.err.splitlines()
    assert len(lines) == 3, ended.err
    for name, value in names.items():
        (line,) = [line for line in lines if line.startswith(f"{name}: ")]
        assert value.rpartition("@")[2].partition("/")[0] in line
    assert "s3cret" not in ended.err


def test_a_machine_in_no_cluster(
    make_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.pipeline.recipe_servers.cluster_here", lambda: None)  # others may run one here
    recipe = make_recipe(tmp_path / "recipe", stages=("sft",), changes={"resources.address": "auto"})
    ended = call("run", recipe, "--workspace", tmp_path / "w")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert ":resources.address: no Ray cluster runs on this machine; " in ended.err


def test_check_says_them_too_beside_other_faults(
    make_recipe: Callable[..., Path], tmp_path: Path, ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_STORE", f"postgresql://rlhf@127.0.0.1:{ports.new()}/votes")
    judge = ports.new()
    changes = {
        "stages.sft.max_length": 8,
        "stages.judge": judged(f"http://127.0.0.1:{judge}/v1"),
    }
    recipe = make_recipe(tmp_path / "recipe", stages=("sft", "responses"), changes=changes)
    ended = call("check", recipe, "--workspace", tmp_path / "w")
    assert ended.code == 2
    lines = ended.err.splitlines()
    assert any(line.startswith("RLHF_STORE: ") for line in lines)
    assert any(f":stages.judge.judge.endpoint.url: the endpoint at http://127.0.0.1:{judge}" in line for line in lines)
    assert any("max_length" in line for line in lines), "the other faults are not hidden"


@pytest.mark.parametrize(
    "command",
    [
        ["votes", "export", "out.jsonl"], ["votes", "agreement"], ["rate", "--port", "0"], ["backup", "kept.tar"],
        ["models", "list"], ["models", "show", "policy/1"], ["models", "promote", "policy/1", "--force"],
        ["models", "rollback"], ["generate", "policy/1", "--prompt", "x"], ["chat", "policy/1"], ["dashboard"],
    ],
)  # fmt: skip
def test_other_commands_say_it_as_well(
    command: list[str], tmp_path: Path, ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    votes = command[0] in ("votes", "rate", "backup")
    variable = "RLHF_STORE" if votes else "MLFLOW_TRACKING_URI"
    port = ports.new()
    monkeypatch.setenv(variable, f"postgresql+psycopg://u@127.0.0.1:{port}/db" if votes else f"http://127.0.0.1:{port}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w" / "artifacts").mkdir(parents=True)
    monkeypatch.setattr(probes, "NAMED_SECONDS", 0.5)  # what the others take is tested above
    began = time.monotonic()
    ended = call(*command, "--workspace", tmp_path / "w")
    assert time.monotonic() - began < 15
    assert ended.code == 2, ended.err
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith(f"{variable}: ")
    assert f"127.0.0.1:{port}" in ended.err


def test_what_is_named_by_an_option_is_said_by_the_option(
    tmp_path: Path, ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "NAMED_SECONDS", 0.5)
    port = ports.new()
    store = f"postgresql://u@127.0.0.1:{port}/db"
    ended = call("votes", "export", tmp_path / "x.jsonl", "--store", store, "--workspace", tmp_path / "w")
    assert ended.code == 2
    assert ended.err.startswith("--store: ")


def test_servers_that_are_there_are_no_fault(tmp_path: Path, new_database: Callable[[], str]) -> None:
    """A real PostgreSQL, a server with no list of models (404), and one of HTTP/2."""
    space = Workspace(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_STORE", new_database())
        patch.setenv("MLFLOW_TRACKING_URI", new_database())
        named_servers.require_named(space)
        patch.setenv("RLHF_STORE", str(tmp_path / "votes.db"))
        named_servers.require_named(space)


@pytest.mark.slow
def test_a_real_ray_is_there(tmp_path: Path) -> None:
    import ray

    context = ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        assert ray_cluster(context.address_info["gcs_address"], "resources.address").fault(1.0) is None
    finally:
        ray.shutdown()


def test_what_answers_at_rays_address_and_is_none(tmp_path: Path) -> None:
    server = FakeServer()
    address = server.url.removeprefix("http://").removesuffix("/v1")
    fault = ray_cluster(address, "resources.address").fault(0.0)
    server.stop()
    assert fault is not None
    assert "no Ray" in fault.problem
    wrong = ray_cluster("head", "resources.address").fault(30.0)
    assert wrong is not None
    assert "HOST:PORT" in wrong.remedy


@pytest.mark.parametrize("what", ["folder", "text", "nowhere", "new"])
def test_a_file_that_is_no_database_is_said_before(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "votes.db"
    if what == "folder":
        path.mkdir()
    elif what == "text":
        path.write_text("these are no votes " * 100)
    elif what == "nowhere":
        path = tmp_path / "there" / "votes.db"
    assert (file_problem(path) is None) == (what == "new")
    assert what != "new" or not path.exists(), "looking makes no file"


def test_a_stage_that_the_cache_answers_needs_no_server(
    make_recipe: Callable[..., Path], tmp_path: Path, rlhf: Callable[..., Any], prefect_server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What was judged is there; the judge may be switched off. Another question to it is not answered by the cache."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    server = FakeServer()
    server.behave = prefers_shorter
    recipe = make_recipe(
        tmp_path / "recipe", stages=("responses",),
        changes={"stages.responses.model": "base", "stages.judge": judged(server.url)},
    )  # fmt: skip
    first = rlhf("run", recipe, "--workspace", tmp_path / "w")
    assert first.code == 0, first.err
    server.stop()
    again = rlhf("run", recipe, "--workspace", tmp_path / "w")
    assert again.code == 0, again.err
    changed = rlhf("run", recipe, "--workspace", tmp_path / "w", "--set", "stages.judge.judge.examples=1")
    other = rlhf("run", recipe, "--workspace", tmp_path / "w", "--refresh", "judge")
    assert (changed.code, other.code) == (2, 2)
    assert "stages.judge.judge.endpoint.url" in other.err


@pytest.mark.slow  # each is a process of its own
@pytest.mark.parametrize("variable", ["RLHF_STORE", "MLFLOW_TRACKING_URI"])
def test_the_real_command(
    variable: str, make_recipe: Callable[..., Path], tmp_path: Path, ports: Ports, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(tmp_path / "recipe", stages=("sft",))
    port = ports.new()
    environment = {**os.environ, variable: f"postgresql+psycopg://u@127.0.0.1:{port}/db"}
    command = [sys.executable, "-m", "flows.cli", "run", str(recipe), "-w", str(tmp_path / "w")]
    began = time.monotonic()
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert time.monotonic() - began < 20  # eight of them are the wait; the rest is a busy machine's start of Python
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert f"127.0.0.1:{port}" in ended.stderr
    assert json.dumps(ended.stdout) == '""'
