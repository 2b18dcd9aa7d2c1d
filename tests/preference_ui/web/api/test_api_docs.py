"""The commands of docs/api.md, run as they stand against the running app."""

import json
import shutil
import subprocess
from typing import Any

import pytest

from preference_ui.accounts.tokens import make_token
from tests.documented import ROOT, blocks


def test_the_documented_calls_do_what_the_page_says(running_app: Any) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    shown = {block.title: block.text for block in blocks(ROOT / "docs/api.md") if block.title}
    assert list(shown) == ["queue", "read", "vote"]
    rater = running_app.sign_in("documented", guidelines_read=0)
    store = running_app.store
    tokens = {"QUEUE_TOKEN": ["queue"], "READ_TOKEN": ["read"], "VOTE_TOKEN": ["vote"]}
    given = {name: make_token(store, "docs", scopes, account=rater.name if scopes == ["vote"] else None,
                              created_by="test")[1] for name, scopes in tokens.items()}  # fmt: skip
    said = {}
    for title, text in shown.items():
        program = ["bash", "-eo", "pipefail", "-c", text]
        there = {"PATH": "/usr/bin:/bin", "RATERS": running_app.url, "NO_PROXY": "*"}
        ended = subprocess.run(program, env=there | given, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        said[str(title)] = _documents(ended.stdout)
    assert said["queue"] == [{"rows": 3, "new": 3, "repeated": 0, "known": 0, "turned": 0, "kept": 0}]
    queues, votes, records = said["read"]
    [colours] = [one for one in queues["queues"] if one["queue"] == "colours"]
    assert (colours["comparisons"], colours["wanted"], colours["votes"]) == (3, 6, 0)
    assert votes == {"votes": [], "next": None}
    assert sorted(one["prompt"]["messages"][0]["content"] for one in records["records"]) == [
        "Name a colour.", "Name a town.", "Say hello.",
    ]  # fmt: skip
    read, skipped = said["vote"]
    assert (read["read"], skipped["repeated"]) == (True, False)


def _documents(text: str) -> list[Any]:
    """JSON documents one after another."""
    decoder, at, found = json.JSONDecoder(), 0, []
    while at < len(text.rstrip()):
        one, at = decoder.raw_decode(text, at)
        found.append(one)
    return found
