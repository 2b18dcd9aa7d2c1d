"""The registry against an MLflow server by URL: what a team shares."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alignment.evaluation.gate import GateVerdict
from alignment.recipe.recipe import Recipe
from alignment.records import Artifact
from alignment.registry import Provenance, list_versions, register, show
from alignment.registry.store import RegistryStore
from alignment.workspace import Workspace

Run = dict[str, Artifact]
pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination",
        str(tmp_path / "kept"),
    ]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    log = (tmp_path / "server.log").open("wb")
    process = subprocess.Popen([*command, *stores], stdout=log, stderr=log, env=environment, cwd=tmp_path)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "the server died"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server did not answer")


@pytest.mark.timeout(300)
def test_a_version_on_a_server_has_its_files_there_too(
    server: str,
    workspace: Workspace,
    recipe: Recipe,
    provenance: Provenance,
    make_run: Callable[..., Run],
    judge: Callable[[Run], GateVerdict],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    run = make_run()
    version = register(workspace, recipe, run, "dpo", judge(run), provenance)
    assert version.aliases == ("champion",)
    assert register(workspace, recipe, run, "dpo", judge(run), provenance) == version
    assert [v.version for v in list_versions(workspace)] == [1]
    assert show(workspace, "policy@champion").intact
    store = RegistryStore(workspace, "policy")
    assert store.get(1).source.startswith("runs:/")
    kept = Path(store.client.download_artifacts(version.mlflow_run, "model", str(tmp_path)))
    assert {path.name for path in kept.iterdir()} == {path.name for path in Path(version.folder).iterdir()}
