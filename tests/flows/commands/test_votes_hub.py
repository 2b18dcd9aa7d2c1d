"""`rlhf votes import hub:…` and `export --hub`, in real requests to a hub of the test's own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.conftest import call
from tests.hub_server import Hub

Run = Callable[..., subprocess.CompletedProcess[str]]
TOKEN = "hf_9876543210zyxwvutsrq"
PAIRS = [{"prompt": f"What is {n} + 1?", "chosen": f"{n + 1}", "rejected": "I cannot say."} for n in range(7)]


@pytest.fixture
def rlhf(hub: Hub, tmp_path: Path) -> Run:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", *words, "--workspace", str(tmp_path / "w")]
        return subprocess.run(
            command, env=hub.environment(tmp_path, TOKEN), capture_output=True, text=True, timeout=200, check=False
        )

    return run


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_a_data_set_comes_in_and_what_people_said_goes_out(rlhf: Run, hub: Hub, tmp_path: Path) -> None:
    hub.files = {"README.md": b"# pairs", "data/train.jsonl": lines(PAIRS)}
    ended = rlhf("votes", "import", "hub:org/name")
    assert (ended.returncode, ended.stdout) == (0, "7 rows: 7 new comparisons\n")
    assert hub.tokens == {f"Bearer {TOKEN}"}
    hub.files["data/test.jsonl"] = lines([{"prompt": "Which?", "chosen": "This.", "rejected": "That."}])
    ended = rlhf("votes", "import", "hub:org/name")
    several = "org/name has several files: data/test.jsonl, data/train.jsonl; name one: hub:org/name:data/test.jsonl"
    assert (ended.returncode, ended.stderr.splitlines()) == (2, [several])
    ended = rlhf("votes", "import", "hub:org/name:data/test.jsonl")
    assert (ended.returncode, ended.stdout) == (0, "1 rows: 1 new comparisons\n")
    hub.files = {}
    ended = rlhf("votes", "export", str(tmp_path / "out"), "--what", "records", "--hub", "org/name")
    assert ended.returncode == 0, ended.stderr
    assert "pushed to org/name" in ended.stdout
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(hub.files) == ["manifest.json", "records.csv", "records.jsonl", "votes.csv"]
    [created] = hub.created
    assert (created["type"], created["visibility"]) == ("dataset", "private")
    assert TOKEN not in ended.stdout + ended.stderr


def test_what_is_refused(rlhf: Run, hub: Hub) -> None:
    hub.refuses = True
    ended = rlhf("votes", "import", "hub:org/name")
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"rlhf: {hub.url} refused org/name (403, ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("import", "hub:alone"), "'alone' says not whose it is; write ORGANISATION/NAME"),
        (("import", "hub:no hub!/x"), "write ORGANISATION/NAME"),
        (("import", "rows.jsonl", "--revision", "main"), "--revision: a file has no revision; leave it out"),
        (("export", "o.jsonl", "--hub", "alone"), "--hub: 'alone' says not whose it is; write ORGANISATION/NAME"),
        (("export", "o.jsonl", "--public"), "--public: what is written here is neither public nor private; add --hub"),
    ],
)
def test_no_request_is_made_of_nonsense(
    words: tuple[str, ...], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    ended = call("votes", *words, "--workspace", tmp_path / "w")
    assert ended.code == 2
    [said] = ended.err.splitlines()
    assert line in said
    assert not (tmp_path / "o.jsonl").exists()
