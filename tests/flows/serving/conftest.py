"""A workspace in which tiny chat models are registered versions, and `rlhf serve` as a process of its own."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from alignment.durable_files import folder_digest
from alignment.evaluation.gate import decide
from alignment.recipe.recipe import Recipe
from alignment.records import Artifact
from alignment.registry import Provenance, RegisteredVersion, register
from alignment.workspace import Workspace

KEY = "a-long-random-word-of-nobody"
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": {"base": "tiny-base"},
    "data": {"prompts": "prompts.jsonl", "demonstrations": "demonstrations.jsonl"},
    "stages": {
        "sft": {"kind": "sft"},
        "check": {"kind": "evaluate", "model": "sft", "raters": {"rubric": "rubric.yaml"}},
    },
    "gate": {"evaluation": "check", "conditions": [{"metric": "kl", "below": 10}]},
}
AddVersion = Callable[..., RegisteredVersion]


def add_version(workspace: Workspace, folder: Path, base: Path) -> RegisteredVersion:
    """Registers a model's folder as the next version, which the gate passes: it is the champion."""
    made = {
        "base": Artifact(
            name="base", kind="model", version=1, digest=folder_digest(base), path=str(base), key=str(base)
        )
    }
    output = workspace.folder("partial") / "sft"
    shutil.copytree(folder, output)
    (output / "curves.json").write_text(json.dumps({"loss": [[1, float(time.time())]]}))  # no two runs are the same
    draft = Artifact(
        name="sft", kind="model", version=1, digest=folder_digest(output), path=str(output), key=folder_digest(output),
        inputs={"base": made["base"].ref()}, metrics={"loss": 1.0},
    )  # fmt: skip
    made["sft"] = workspace.publish(draft, output)
    recipe = Recipe.model_validate(RECIPE)
    assert recipe.gate is not None
    verdict = decide(recipe.gate, {"kl": 1.0, "kl.low": 0.5, "kl.high": 1.5})
    provenance = Provenance(run="tiny-1", recipe_digest="ab" * 32)
    return register(workspace, recipe, made, "sft", verdict, provenance)


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh MLflow store, migrated once: each workspace gets a copy."""
    from alignment.registry.store import connect

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Workspace:
    root = tmp_path_factory.mktemp("serving") / "work@space"  # an @ is what names and revisions are parted by
    root.mkdir()
    shutil.copy(empty_registry, root / "mlflow.db")
    return Workspace(root)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Serving:
    """`rlhf serve` at work, and how to ask it."""

    def __init__(self, workspace: Workspace, reference: str, *options: object, key: str | None = KEY) -> None:
        self.port, self.workspace, self.key = free_port(), workspace, key
        self.log = workspace.root / f"serve-{self.port}.log"
        command = [sys.executable, "-m", "flows.cli", "serve", reference, "--workspace", str(workspace.root)]
        command += ["--port", str(self.port), *map(str, options)]
        environment = os.environ | ({"RLHF_SERVE_KEY": key} if key else {})
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def until(self, what: Callable[[], bool], seconds: float = 400) -> None:
        """Waits for something; fails with what was said where it does not come."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if what():
                    return
            assert time.monotonic() < end, self.said
            assert self.process.poll() is None, self.said
            time.sleep(0.1)

    def is_well(self) -> bool:
        return httpx.get(f"{self.url}/health", timeout=10).status_code == 200

    def ask(self, text: str, **settings: Any) -> httpx.Response:
        """One chat completion, as any client asks for one."""
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8} | settings
        return self.post("/v1/chat/completions", body)

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> httpx.Response:
        given = {"Authorization": f"Bearer {self.key}"} if headers is None and self.key else dict(headers or {})
        return httpx.post(f"{self.url}{path}", json=body, headers=given, timeout=120)

    def children(self) -> list[psutil.Process]:
        """The models' servers."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in below if "flows.serving.model_server" in " ".join(one.cmdline())]

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise


@pytest.fixture
def serve() -> Iterator[Callable[..., Serving]]:
    """Starts `rlhf serve`, and ends it."""
    started: list[Serving] = []

    def start(*arguments: Any, **options: Any) -> Serving:
        started.append(Serving(*arguments, **options))
        return started[-1]

    yield start
    for one in started:
        one.end()
