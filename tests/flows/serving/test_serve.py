"""`rlhf serve` for real: what it answers, to whom, what it keeps of it, and how it changes to the next champion."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from alignment.data.prompts import read_prompts
from alignment.records import Message, Sampling
from alignment.registry import RegisteredVersion, promote
from alignment.workspace import Workspace
from tests.flows.serving.conftest import KEY, Serving, add_version

pytest.importorskip("openai", reason="transformers' server needs openai: rlhf-flows[serve]")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

QUESTION = "What colour is the cat?"
LEFT_SECONDS = 20  # for what was killed to be gone


@pytest.fixture(scope="module")
def models(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    return [make_model(root / f"m{seed}", seed=seed) for seed in (3, 6)]  # whose answers are letters


@pytest.fixture(scope="module")
def versions(workspace: Workspace, models: list[Path]) -> list[RegisteredVersion]:
    """Two versions, of which the second is the champion."""
    return [add_version(workspace, folder, models[0]) for folder in models]


@pytest.fixture(scope="module")
def own_answers(workspace: Workspace, versions: list[RegisteredVersion]) -> list[str]:
    """What our own engine answers, greedily, of each version."""
    from alignment.chat import render_prompt
    from alignment.models.families import stop_ids
    from alignment.rollouts.transformers_engine import TransformersEngine
    from flows.services.model_version import load_version

    texts = []
    for version in versions:
        model, tokenizer = load_version(f"policy/{version.version}", workspace)
        engine = TransformersEngine(model, tokenizer, stop_ids=stop_ids(model, tokenizer))
        prompt = render_prompt(tokenizer, [Message(role="user", content=QUESTION)])
        [[whole]] = engine.generate([prompt], sampling=Sampling(temperature=0, max_new_tokens=8), seeds=[0])
        texts.append(whole.text)
    assert texts[0] != texts[1]
    return texts


@pytest.fixture(scope="module")
def serving(
    workspace: Workspace, versions: list[RegisteredVersion], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    """The first version, its prompts logged."""
    log = tmp_path_factory.mktemp("log") / "asked.jsonl"
    one = Serving(workspace, "policy/1", "--log-prompts", log)
    try:
        one.until(one.is_well)
        yield one
    finally:
        one.end()


def text_of(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def test_an_answer_is_what_generate_gives_and_says_whose_it_is(
    serving: Serving, versions: list[RegisteredVersion], own_answers: list[str]
) -> None:
    reply = serving.ask(QUESTION, temperature=0, model="policy/1")
    assert text_of(reply) == own_answers[0]
    assert text_of(serving.ask(QUESTION)) == own_answers[0]  # the version's settings are greedy
    assert reply.headers["x-rlhf-version"] == "policy/1"
    assert reply.headers["x-rlhf-digest"] == versions[0].candidate.digest
    assert str(serving.workspace.root) not in reply.text
    drawn = {text_of(serving.ask(QUESTION, temperature=1.5, seed=seed)) for seed in range(4)}
    assert len(drawn) > 1  # a temperature counts, although the version's settings are greedy
    prompt = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    plain = serving.post("/v1/completions", {"prompt": prompt, "max_tokens": 8, "temperature": 0})
    assert plain.json()["choices"][0]["text"] == own_answers[0]


def test_a_stream_says_the_same(serving: Serving, own_answers: list[str]) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8, "stream": True}
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.stream("POST", f"{serving.url}/v1/chat/completions", json=body, headers=headers, timeout=60) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["x-rlhf-version"] == "policy/1"
        events = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]
    pieces = [event["choices"][0]["delta"].get("content") or "" for event in events]
    assert "".join(pieces) == own_answers[0]
    assert len(pieces) > 2


def test_who_may_ask_and_for_what(serving: Serving) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 2}
    path = "/v1/chat/completions"
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}):
        refused = serving.post(path, body, headers=headers)
        assert refused.status_code == 401, headers
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert refused.headers["x-rlhf-version"] == "policy/1"
    assert httpx.get(f"{serving.url}/v1/models", timeout=10).status_code == 401
    key = {"Authorization": f"Bearer {KEY}"}
    listed = httpx.get(f"{serving.url}/v1/models", headers=key, timeout=10).json()
    assert [one["id"] for one in listed["data"]] == ["policy/1"]
    assert serving.post(path, body | {"model": "gpt-4"}).json()["error"]["code"] == "model_not_found"
    assert serving.post("/reset", {}).status_code == 404  # would unload the model
    assert serving.post("/load_model", {"model": "x"}).status_code == 404
    plain = httpx.post(f"{serving.url}{path}", content=json.dumps(body), headers=key, timeout=10)
    assert plain.status_code == 415  # what a page of another site may send without asking
    assert httpx.post(f"{serving.url}{path}", content=b"{", headers=key | JSON, timeout=10).status_code == 400
    for broken in ([1], {"messages": [], "model": ["policy/1"]}):
        assert serving.post(path, broken).status_code in (400, 404)
    deep = "[" * 100_000 + "]" * 100_000
    assert httpx.post(f"{serving.url}{path}", content=deep, headers=key | JSON, timeout=10).status_code == 400
    assert serving.post(path, body | {"messages": [{"role": "user", "content": "x" * 9_000_000}]}).status_code == 413
    assert serving.post(path, body | {"nonsense": 1}).status_code == 422  # the server's own word
    everything = " ".join(Path(f"/proc/{serving.process.pid}/cmdline").read_bytes().decode().split("\0"))
    logs = [path.read_text("utf-8", "replace") for path in (serving.workspace.root / "services").glob("serve-*.log")]
    assert all(KEY not in text for text in [everything, serving.said, *logs])
    assert all("RLHF_SERVE_KEY" not in one.environ() for one in serving.children())


JSON = {"Content-Type": "application/json"}


def test_answered_prompts_are_kept_redacted(serving: Serving) -> None:
    [log] = [Path(word) for word in psutil.Process(serving.process.pid).cmdline() if word.endswith("asked.jsonl")]
    before = len(log.read_text("utf-8").splitlines())
    text_of(serving.ask("Write to ada@example.org or call +44 20 7946 0958"))
    turns = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": [TEXT, TEXT]}]
    text_of(serving.post("/v1/chat/completions", {"messages": turns, "max_tokens": 2}))
    serving.ask(QUESTION, nonsense=1)  # refused, so not answered
    serving.post("/v1/completions", {"prompt": "the cat", "max_tokens": 2})  # no conversation
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()[before:]]
    assert rows == [
        {"messages": [{"role": "user", "content": "Write to [email] or call [phone]"}], "source": "served"},
        {
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one one"}],
            "source": "served",
        },
    ]
    assert log.stat().st_mode & 0o077 == 0
    assert read_prompts(log)[-1].messages[-1].content == "one one"


TEXT = {"type": "text", "text": "one"}


class Load:
    """Clients that ask one after another, until told to stop. ``answers``: (asked, answered, status, digest, text)."""

    def __init__(self, serving: Serving, clients: int) -> None:
        self.serving, self.stopping = serving, threading.Event()
        self.answers: list[tuple[float, float, int, str, str]] = []
        self.threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def _ask(self) -> None:
        for number in itertools.count():
            if self.stopping.is_set():
                return
            asked = time.monotonic()
            try:
                reply = self.serving.ask(QUESTION, temperature=0, model="policy@champion", stream=number % 3 == 2)
            except httpx.HTTPError as error:
                self.answers.append((asked, time.monotonic(), 0, "", repr(error)))
                return
            digest = reply.headers.get("x-rlhf-digest", "")
            self.answers.append((asked, time.monotonic(), reply.status_code, digest, _content(reply)))

    def end(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(120)


def _content(reply: httpx.Response) -> str:
    if not reply.headers.get("content-type", "").startswith("text/event-stream"):
        return str(reply.json()["choices"][0]["message"]["content"]) if reply.status_code == 200 else reply.text
    events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events)


def test_the_next_champion_takes_over_and_no_request_is_lost(
    workspace: Workspace,
    versions: list[RegisteredVersion],
    own_answers: list[str],
    serve: Callable[..., Serving],
) -> None:
    serving = serve(workspace, "policy@champion")
    serving.until(serving.is_well)
    [first] = serving.children()
    load = Load(serving, clients=4)
    try:
        serving.until(lambda: len(load.answers) > 20)
        promote(workspace, "policy/1", by="test")
        old, new = versions[1].candidate.digest, versions[0].candidate.digest
        serving.until(lambda: any(answer[3] == new for answer in load.answers))
        serving.until(lambda: not first.is_running() or first.status() == psutil.STATUS_ZOMBIE)
        enough = len(load.answers) + 20
        serving.until(lambda: len(load.answers) > enough)

        # Its server is killed: the requests that it had are answered by the one that is started in its place.
        [second] = serving.children()
        second.kill()
        serving.until(lambda: "died and is started again: it ended with -9" in serving.said)
        enough = len(load.answers) + 8
        serving.until(lambda: len(load.answers) > enough)
    finally:
        load.end()
    assert [answer for answer in load.answers if answer[2] != 200] == []
    texts = {old: own_answers[1], new: own_answers[0]}
    cut = [answer for answer in load.answers if answer[4] != texts[answer[3]]]
    assert all("broke off" in answer[4] or texts[answer[3]].startswith(answer[4]) for answer in cut)
    assert len(cut) <= 4  # streams that had begun when their server was killed
    changed = min(answered for _, answered, _, digest, _ in load.answers if digest == new)
    assert {digest for asked, _, _, digest, _ in load.answers if asked > changed} == {new}
    assert {digest for _, answered, _, digest, _ in load.answers if answered < changed} == {old}

    # Told to end, it answers what it was asked.
    replies: list[int] = []
    threads = [threading.Thread(target=lambda: replies.append(_long(serving))) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.7)
    left = serving.children()
    serving.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert replies == [200] * 3
    assert serving.process.wait(60) == 0
    assert "everything has ended" in serving.said
    assert [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []


def _long(serving: Serving) -> int:
    return serving.ask(QUESTION, temperature=1.0, max_tokens=600).status_code


def test_killed_itself_it_leaves_no_server_behind(
    workspace: Workspace, versions: list[RegisteredVersion], serve: Callable[..., Serving]
) -> None:
    serving = serve(workspace, "policy/2", key=None)
    serving.until(serving.is_well)
    assert serving.ask(QUESTION).status_code == 200  # no key, on this machine
    assert serving.post("/v1/chat/completions", {}, headers={"Host": "evil.example.org"}).status_code == 403
    left = serving.children()
    assert len(left) == 1
    os.kill(serving.process.pid, signal.SIGKILL)
    _gone, alive = psutil.wait_procs(left, timeout=LEFT_SECONDS)
    assert alive == []


def test_a_version_that_cannot_be_served_is_said_and_the_one_before_goes_on(
    workspace: Workspace,
    versions: list[RegisteredVersion],
    models: list[Path],
    tmp_path: Path,
    serve: Callable[..., Serving],
) -> None:
    promote(workspace, "policy/2", by="test")
    serving = serve(workspace, "policy@champion")
    serving.until(serving.is_well)
    broken = tmp_path / "broken"
    shutil.copytree(models[0], broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchModel"], "model_type": "none"}))
    third = add_version(workspace, broken, models[0])
    assert third.aliases == ("champion",)
    serving.until(lambda: "policy/2 goes on answering; it is tried again in 1 s" in serving.said)
    assert "the server of policy v3 did not come up: it ended with" in serving.said
    assert serving.ask(QUESTION).headers["x-rlhf-version"] == "policy/2"

    alone = subprocess.run(
        [sys.executable, "-m", "flows.cli", "serve", "policy/3", "--workspace", str(workspace.root)],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert alone.returncode == 1
    assert "the server of policy v3 did not come up: it ended with" in alone.stderr
    assert "none" in alone.stderr  # the end of its log
    promote(workspace, "policy/2", by="test")
