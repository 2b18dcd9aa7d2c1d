"""Servers change places under load: real processes and real requests, with a server that needs no model to start."""

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from alignment.durable_files import file_digest
from alignment.errors import InputError, StageError
from alignment.records import ArtifactRef
from alignment.registry import files as registry_files
from alignment.registry.records import RegisteredVersion
from alignment.workspace import Workspace
from flows.serving import switchboard
from flows.serving.front import LOCAL_NAMES, AccessRule, Front
from flows.serving.prompt_log import PromptLog
from flows.serving.switchboard import Switchboard
from flows.serving.version_server import VersionServer
from tests.flows.serving.conftest import free_port

SMALL = "tests.flows.serving.small_server"
JSON = {"content-type": "application/json"}


def version_of(workspace: Workspace, number: int, run: str = "") -> RegisteredVersion:
    """A version whose files are whole."""
    from alignment.evaluation.gate import GateVerdict
    from alignment.registry.lineage import Lineage
    from alignment.registry.records import Provenance, VersionRecord

    folder = workspace.folder("registry", "policy") / f"v{number}"
    candidate = ArtifactRef(name="sft", kind="model", version=number, digest=f"{number:064d}")
    if not folder.exists():
        folder.mkdir()
        (folder / "weights").write_text(str(number))
        record = VersionRecord(
            name="policy", version=number, recipe="tiny", provenance=Provenance(run="tiny-1", recipe_digest="ab"),
            candidate=candidate, verdict=GateVerdict(passed=True, checks=()), chat_template=None,
            lineage=Lineage(nodes=()), files=registry_files.model_files(folder),
        )  # fmt: skip
        (folder / "lineage.json").write_text(record.model_dump_json())
    return RegisteredVersion(
        name="policy", version=number, aliases=("champion",), folder=str(folder), candidate=candidate, passed=True,
        run=run, recipe="tiny", recipe_digest="ab", commit=None, registered=datetime.now(UTC), mlflow_run="0",
        lineage_sha256=file_digest(folder / "lineage.json"),
    )  # fmt: skip


class Stage:
    """A front with its switchboard, served from this event loop. ``champion`` is what the name stands for."""

    def __init__(self, workspace: Workspace, champion: RegisteredVersion | Exception, log: Path | None = None) -> None:
        self.workspace, self.champion, self.said = workspace, champion, [""]
        self.client = httpx.AsyncClient(trust_env=False, timeout=30, limits=httpx.Limits(max_connections=None))
        self.board = Switchboard(
            "policy@champion", self.look_up, partial(VersionServer, workspace, module=SMALL), self.client,
            self.said.append,
        )  # fmt: skip
        self.front = Front(
            self.board, self.client, AccessRule(None, LOCAL_NAMES), None if log is None else PromptLog(log)
        )
        self.url = ""

    def look_up(self, _before: RegisteredVersion | None) -> RegisteredVersion:
        if isinstance(self.champion, Exception):
            raise self.champion
        return self.champion

    async def ask(self, **settings: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": "Who?"}]} | settings
        return await self.client.post(f"{self.url}/v1/chat/completions", json=body)

    async def until(self, what: Callable[[], bool], seconds: float = 60) -> None:
        async with asyncio.timeout(seconds):
            while not what():
                await asyncio.sleep(0.02)


@asynccontextmanager
async def staged(stage: Stage) -> AsyncIterator[Stage]:
    port = free_port()
    stage.url = f"http://127.0.0.1:{port}"
    config = uvicorn.Config(stage.front.app(), host="127.0.0.1", port=port, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    stopping = asyncio.Event()
    answering = asyncio.create_task(server._serve())
    switching = asyncio.create_task(stage.board.run(stopping))
    try:
        await stage.until(lambda: server.started and (stage.board.current is not None or switching.done()))
        if switching.done():
            switching.result()
        yield stage
    finally:
        stopping.set()
        server.should_exit = True
        await answering
        await asyncio.gather(switching, return_exceptions=True)
        started = list(stage.board._servers)
        await stage.board.close()
        await stage.client.aclose()
        assert all(not one.is_alive for one in started)


def run(work: Awaitable[None]) -> None:
    async def whole() -> None:
        await work

    asyncio.run(whole())


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(switchboard, "LOOK_SECONDS", 0.05)
    return Workspace(tmp_path)


def test_versions_change_five_times_under_load_and_no_request_is_lost(workspace: Workspace) -> None:
    """Every answer is of the version that its header names; whoever asks after a change is answered by the new one."""
    answers: list[tuple[float, float, int, str, int]] = []

    async def keep_asking(stage: Stage, stopping: asyncio.Event, client: int) -> None:
        loop = asyncio.get_running_loop()
        number = client
        while not stopping.is_set():
            number += 1
            asked = loop.time()
            reply = await stage.ask(stream=number % 3 == 0)
            first = json.loads(reply.text.splitlines()[0].removeprefix("data: "))
            assert reply.text.count("data: ") == (4 if number % 3 == 0 else 0)  # a stream came to its end
            digest = reply.headers["x-rlhf-digest"]
            answers.append((asked, loop.time(), reply.status_code, digest, first["version"]))

    async def work() -> None:
        async with staged(Stage(workspace, version_of(workspace, 1))) as stage:
            stopping = asyncio.Event()
            asking = [asyncio.create_task(keep_asking(stage, stopping, client)) for client in range(12)]
            for number in (2, 3, 1, 3, 2):
                await asyncio.sleep(0.3)
                stage.champion = version_of(workspace, number, run="slow" if number == 3 else "")
                await stage.until(lambda number=number: stage.board.current.version.version == number)  # type: ignore[misc,union-attr]
            await asyncio.sleep(0.3)
            stopping.set()
            await asyncio.gather(*asking)  # any failure is raised here
            await stage.until(lambda: len(stage.board._servers) == 1)  # the others have ended
            assert sum("has answered what it was asked" in line for line in stage.said) == 5

    run(work())
    assert len(answers) > 200
    assert {status for _, _, status, _, _ in answers} == {200}
    assert all(int(digest) == version for _, _, _, digest, version in answers)
    assert {version for *_, version in answers} == {1, 2, 3}
    last = max(answered for _, answered, *_, version in answers if version != 2)
    assert all(version == 2 for asked, *_, version in answers if asked > last)


def test_a_server_that_dies_is_replaced_and_its_requests_are_asked_again(workspace: Workspace) -> None:
    async def work() -> None:
        async with staged(Stage(workspace, version_of(workspace, 1))) as stage:
            first = stage.board.current
            assert first is not None
            asking = [asyncio.create_task(stage.ask(seconds=0.5)) for _ in range(6)]
            streaming = asyncio.create_task(stage.ask(seconds=2, stream=True))
            await asyncio.sleep(0.25)
            os.killpg(first.process.pid, signal.SIGKILL)
            replies = await asyncio.gather(*asking)
            assert [reply.status_code for reply in replies] == [200] * 6
            assert "the model's server broke off" in (await streaming).text
            assert stage.board.current not in (None, first)
            assert "the server of policy v1 died and is started again: it ended with -9" in "\n".join(stage.said)
            assert (await stage.client.get(f"{stage.url}/health")).status_code == 200
            assert first.active == 0

    run(work())


def test_a_version_that_does_not_come_up_leaves_the_one_before(workspace: Workspace) -> None:
    async def work() -> None:
        async with staged(Stage(workspace, version_of(workspace, 1))) as stage:
            stage.champion = version_of(workspace, 2, run="broken")
            await stage.until(lambda: "it is tried again" in stage.said[-1])
            assert "the server of policy v2 did not come up: it ended with 1; its log is" in stage.said[-1]
            assert "these weights are of no model" in stage.said[-1]
            assert "policy/1 goes on answering" in stage.said[-1]
            assert (await stage.ask()).json()["version"] == 1
            changed = version_of(workspace, 3)
            (Path(changed.folder) / "weights").write_text("other weights")  # no longer what was registered
            stage.champion = changed
            await stage.until(lambda: "policy v3 is not served" in stage.said[-1])
            assert "weights: the file has changed" in stage.said[-1]
            assert (await stage.ask()).headers["x-rlhf-version"] == "policy/1"
            stage.champion = InputError([])
            await stage.until(lambda: "cannot be looked up" in stage.said[-1])
            before = len(stage.said)
            assert (await stage.ask()).status_code == 200
            await asyncio.sleep(0.3)
            assert len(stage.said) == before  # said once
            stage.champion = version_of(workspace, 4)
            await stage.until(lambda: stage.board.current.version.version == 4)  # type: ignore[union-attr]

    run(work())


def test_a_registry_that_hangs_keeps_no_dead_server_dead(workspace: Workspace) -> None:
    hanging = threading.Event()

    async def work() -> None:
        async with staged(Stage(workspace, version_of(workspace, 1))) as stage:
            first, look_up = stage.board.current, stage.board.look_up
            assert first is not None
            stage.board.look_up = lambda before: (hanging.wait(30), look_up(before))[1]
            await asyncio.sleep(0.2)
            os.killpg(first.process.pid, signal.SIGKILL)
            assert (await stage.ask()).status_code == 200
            assert not hanging.is_set()
            assert stage.board.current not in (None, first)
            hanging.set()

    run(work())


def test_where_none_comes_up_it_ends(workspace: Workspace) -> None:
    async def work() -> None:
        with pytest.raises(StageError, match="policy v1 did not come up: it ended with 1; its log is"):
            async with staged(Stage(workspace, version_of(workspace, 1, run="broken"))):
                pass

    run(work())


def test_a_client_that_goes_away_holds_nothing(workspace: Workspace) -> None:
    async def work() -> None:
        async with staged(Stage(workspace, version_of(workspace, 1))) as stage:
            first = stage.board.current
            assert first is not None
            body = {"messages": [{"role": "user", "content": "Who?"}], "stream": True, "seconds": 20}
            async with stage.client.stream("POST", f"{stage.url}/v1/chat/completions", json=body) as reply:
                async for _ in reply.aiter_raw():
                    break
                assert first.active == 1
            await stage.until(lambda: first.active == 0, seconds=15)
            stage.champion = version_of(workspace, 2)
            await stage.until(lambda: not first.is_alive)

    run(work())


def test_what_is_passed_on_and_kept(workspace: Workspace, tmp_path: Path) -> None:
    async def work() -> None:
        log = tmp_path / "log" / "asked.jsonl"
        async with staged(Stage(workspace, version_of(workspace, 1), log)) as stage:
            asked = (await stage.ask(model="policy@champion", seed=None)).json()["asked"]
            assert asked == {"messages": [{"role": "user", "content": "Who?"}], "temperature": 0.0}  # the version's own
            assert (await stage.ask(temperature=0.7)).json()["asked"]["temperature"] == 0.7
            await stage.ask(messages=[{"role": "user", "content": "I am ada@example.org"}], stream=True)
            await stage.ask(messages="no messages")
            path = f"{stage.url}/v1/chat/completions"
            half = await stage.client.post(
                path, content=b'{"messages": [{"role": "user", "content": "\\ud800"}]}', headers=JSON
            )
            assert half.status_code == 200
            refused = [
                ((await stage.ask(model="gpt-4")).status_code, 404),
                ((await stage.client.post(path, content=b"[1]", headers=JSON)).status_code, 400),
                ((await stage.client.post(path, content=b"{}")).status_code, 415),
                ((await stage.client.post(path, content=b'"' + b"x" * 9_000_000, headers=JSON)).status_code, 413),
                ((await stage.client.post(path, json={}, headers={"host": "evil.example.org"})).status_code, 403),
                ((await stage.client.get(path)).status_code, 405),
            ]
            assert all(status == wanted for status, wanted in refused), refused
            missing = await stage.client.post(f"{stage.url}/reset")
            assert (missing.status_code, missing.headers["x-rlhf-version"]) == (404, "policy/1")
            assert (await stage.client.get(f"{stage.url}/v1/models")).json()["data"][0]["id"] == "policy@champion"
            rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
            assert [row["messages"][0]["content"] for row in rows] == ["Who?", "Who?", "I am [email]"]

    run(work())


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer", "Basic sesame", "sesame"])
def test_a_key_is_asked_for(given: str | None, workspace: Workspace) -> None:
    from starlette.requests import Request

    headers = [] if given is None else [(b"authorization", given.encode())]
    rule = AccessRule("sesame")
    refusal = rule.refusal(Request({"type": "http", "headers": headers}))
    assert refusal is not None
    assert refusal.status_code == 401
    assert refusal.headers["www-authenticate"] == "Bearer"
    assert rule.refusal(Request({"type": "http", "headers": [(b"authorization", b"Bearer sesame")]})) is None
