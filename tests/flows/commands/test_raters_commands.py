"""The raters' app's people from the shell."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from preference_ui.accounts import accounts as people
from preference_ui.accounts import throttle
from preference_ui.accounts.auth import sign_in
from preference_ui.accounts.links import join
from preference_ui.accounts.tokens import bearer_of
from preference_ui.store.errors import Refusal
from preference_ui.store.store import Store
from tests.flows.conftest import call

PASSWORD, NEW = "three calm green rivers", "seven loud red mountains"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store.open(str(tmp_path / "w/raters/votes.db"))
    token = people.first_administrator(opened)
    assert token is not None
    people.accept(opened, token, "root", PASSWORD)
    return opened


def _raters(tmp_path: Path, *words: str) -> Any:
    return call("raters", *words, "--workspace", tmp_path / "w")


def test_an_invitation_from_the_shell_works_is_listed_and_can_be_revoked(store: Store, tmp_path: Path) -> None:
    words = ("--role", "administrator", "--note", "for ada", "--public-url", "https://r.example")
    link = _raters(tmp_path, "invite", *words)
    assert link.code == 0
    assert link.out.startswith("https://r.example/invite/")
    token = link.out.strip().rpartition("/")[2]
    assert people.invitation_role(store, token) == "administrator"
    [pending] = json.loads(_raters(tmp_path, "invitations", "--json").out)
    assert (pending["role"], pending["note"], pending["created_by"]) == ("administrator", "for ada", "shell")
    assert token not in json.dumps(pending)
    assert json.loads(_raters(tmp_path, "invitations", "--revoke", pending["id"], "--json").out) == []
    with pytest.raises(Refusal, match="already used"):
        people.invitation_role(store, token)
    again = _raters(tmp_path, "invitations", "--revoke", pending["id"])
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "no such invitation" in again.err


def test_a_password_is_set_from_the_shell_and_old_sessions_end(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{NEW}\n"))
    done = _raters(tmp_path, "password", "root")
    assert done.code == 0, done.err
    assert NEW not in done.out + done.err
    assert sign_in(store, "root", NEW, "10.0.0.1")
    with pytest.raises(Refusal, match="not right"):
        sign_in(store, "root", PASSWORD, "10.0.0.1")
    assert "account.password" in [line["action"] for line in store.audit_trail(subject="root")]
    monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))
    weak = _raters(tmp_path, "password", "root")
    assert (weak.code, weak.err.count("\n")) == (2, 1)
    assert "at least 10 characters" in weak.err


def test_a_locked_administrator_is_rescued_from_the_shell(store: Store, tmp_path: Path) -> None:
    for _ in range(throttle.FREE_HERE):
        with pytest.raises(Refusal, match="not right"):
            sign_in(store, "root", "wrong", "10.0.0.1")
    with pytest.raises(Refusal, match="Too many"):
        sign_in(store, "root", PASSWORD, "10.0.0.1")
    assert _raters(tmp_path, "unlock", "root").code == 0
    assert sign_in(store, "root", PASSWORD, "10.0.0.1")
    unknown = _raters(tmp_path, "unlock", "nobody")
    assert (unknown.code, unknown.err.count("\n")) == (2, 1)


def test_a_token_is_made_listed_and_revoked_from_the_shell(store: Store, tmp_path: Path) -> None:
    made = _raters(tmp_path, "token", "create", "nightly", "--scope", "queue", "--scope", "read", "--days", "30")
    assert made.code == 0
    token = made.out.strip()
    assert re.fullmatch(r"rlhf_[\w-]{43}", token)  # alone on standard output, for a variable of the shell
    bearer = bearer_of(store, token, "10.0.0.1")
    assert bearer is not None
    assert (bearer.name, sorted(bearer.scopes)) == ("nightly", ["queue", "read"])
    [listed] = json.loads(_raters(tmp_path, "token", "list", "--json").out)
    assert (listed["name"], listed["scopes"], listed["state"]) == ("nightly", "queue,read", "active")
    assert token not in _raters(tmp_path, "token", "list").out
    assert _raters(tmp_path, "token", "revoke", listed["id"]).code == 0
    assert bearer_of(store, token, "10.0.0.1") is None
    mistakes = [("create", "ci", "--scope", "vote"), ("create", "CI", "--scope", "read"),
                ("create", "ci", "--scope", "write"), ("revoke", listed["id"]),
                ("create", "ci", "--scope", "vote", "--account", "nobody")]  # fmt: skip
    for words in mistakes:
        ended = _raters(tmp_path, "token", *words)
        assert (ended.code, ended.err.count("\n"), ended.out) == (2, 1, "")
    voter = _raters(tmp_path, "token", "create", "ci", "--scope", "vote", "--account", "root")
    bearer = bearer_of(store, voter.out.strip(), "10.0.0.1")
    assert bearer is not None
    assert bearer.account == "root"


def test_a_webhook_is_added_listed_and_removed_from_the_shell(store: Store, tmp_path: Path) -> None:
    address = "https://host.example/hook"
    made = _raters(tmp_path, "webhook", "add", address, "--events", "vote.given, record.flagged")
    assert made.code == 0
    secret = made.out.strip()
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", secret)
    [listed] = json.loads(_raters(tmp_path, "webhook", "list", "--json").out)
    assert (listed["url"], listed["events"], listed["waiting"]) == (address, "vote.given,record.flagged", 0)
    assert secret[6:] not in json.dumps(listed) + json.dumps(store.audit_trail(), default=str)
    for words in (("add", "host"), ("add", address, "--events", "vote.taken"), ("remove", "none"), ("retry", "none")):
        ended = _raters(tmp_path, "webhook", *words)
        assert (ended.code, ended.err.count("\n"), ended.out) == (2, 1, "")
    assert _raters(tmp_path, "webhook", "retry", listed["id"]).out == "0 deliveries are tried again\n"
    assert _raters(tmp_path, "webhook", "remove", listed["id"]).code == 0
    assert json.loads(_raters(tmp_path, "webhook", "list", "--json").out) == []


def test_records_are_exported_to_a_folder_from_the_shell(store: Store, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Name a colour.", "responses": ["Red.", "Seven."]}\n')
    place = ("--workspace", tmp_path / "w")
    assert call("votes", "import", rows, *place).code == 0
    done = call("votes", "export", tmp_path / "out", "--what", "records", *place)
    assert done.code == 0
    assert "1 rows of 0 votes by 0 raters, digest" in done.out
    assert (tmp_path / "out" / "records.jsonl").exists()
    for words in (("--form", "text"), ("--min-agreement", "0.5"), ("--queue", "none")):
        ended = call("votes", "export", tmp_path / "other", "--what", "records", *words, *place)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert not (tmp_path / "other").exists()


def test_a_public_url_that_is_none_ends_before_anything_starts(tmp_path: Path) -> None:
    for words in (("--public-url", "raters.example"), ("--trusted-proxy", "proxy")):
        ended = call("rate", "--port", "0", *words, "--workspace", tmp_path / "new")
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert ended.err.startswith(f"{words[0]}: ")
        assert not (tmp_path / "new").exists()


def _votes(tmp_path: Path, *words: str) -> Any:
    return call("votes", *words, "--workspace", tmp_path / "w")


def test_a_queue_is_changed_and_listed_from_the_shell(store: Store, tmp_path: Path) -> None:
    (tmp_path / "guide.md").write_text("Run the code.")
    (tmp_path / "scores.json").write_text('{"style": "1: clumsy; 5: a joy"}')
    files = ("--guidelines", str(tmp_path / "guide.md"), "--criteria", str(tmp_path / "scores.json"))
    words = (*files, "--raters", "root", "--priority", "2", "--deadline", "2030-01-02T03:04:05", "--votes-wanted", "2")
    changed = _votes(tmp_path, "queue", "code", *words, "--close", "--json")
    assert changed.code == 0, changed.err
    said = json.loads(changed.out)
    assert (said["version"], said["guidelines"], said["raters"], said["open"]) == (1, "Run the code.", ["root"], False)
    assert (said["deadline"], said["criteria"][0]["name"]) == ("2030-01-02T03:04:05Z", "style")
    cleared = _votes(
        tmp_path, "queue", "code", "--raters", "-", "--guidelines", "-", "--no-deadline", "--open", "--json"
    )
    said = json.loads(cleared.out)
    assert (said["version"], said["raters"], said["guidelines"], said["deadline"]) == (2, [], None, None)
    assert (said["priority"], said["votes_wanted"], said["open"]) == (2, 2, True)
    assert json.loads(_votes(tmp_path, "queue", "code", "--json").out) == said  # a look changes nothing
    [listed] = json.loads(_votes(tmp_path, "queues", "--json").out)
    assert (listed["queue"], listed["state"], listed["priority"]) == ("code", "open", 2)
    assert "everybody" in _votes(tmp_path, "queues").out


def test_a_queue_is_told_what_to_ask_of_single_answers(store: Store, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"wrong": "Not so.", "rude": "Unkind."}')
    words = ("--single", "spans", "--labels", str(tmp_path / "labels.json"))
    said = json.loads(_votes(tmp_path, "queue", "faults", *words, "--json").out)
    assert (said["single"], [one["name"] for one in said["labels"]]) == ("spans", ["wrong", "rude"])
    assert "wrong: Not so.; rude: Unkind." in _votes(tmp_path, "queue", "faults").out
    said = json.loads(_votes(tmp_path, "queue", "faults", "--single", "rewrites", "--labels", "-", "--json").out)
    assert (said["version"], said["single"], said["labels"]) == (2, "rewrites", [])


@pytest.mark.parametrize(
    ("words", "said"),
    [(("Bad Name",), "no name of a queue"), (("q", "--raters", "nobody"), "no account nobody"),
     (("q", "--guidelines", "no-such.md"), "no-such.md:--guidelines"), (("q", "--priority", "5000"), "priority"),
     (("q", "--single", "spans"), "spans need labels"), (("q", "--single", "scores"), "own criteria"),
     (("q", "--labels", "no-such.json"), "no-such.json:--labels")],
)  # fmt: skip
def test_a_queue_that_cannot_be_is_a_line(store: Store, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    refused = _votes(tmp_path, "queue", *words)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert said in refused.err


def test_a_link_for_many_is_made_listed_and_closed_from_the_shell(store: Store, tmp_path: Path) -> None:
    words = ("--places", "3", "--completion-url", "https://c.example/done", "--public-url", "https://r.example")
    made = _raters(tmp_path, "link", *words)
    assert made.code == 0, made.err
    assert made.out.strip().startswith("https://r.example/join/")
    assert made.out.strip().endswith("?PROLIFIC_PID=")
    token = made.out.strip().rpartition("/")[2].partition("?")[0]
    join(store, token, "5f3a")
    [link] = json.loads(_raters(tmp_path, "links", "--json").out)
    assert (link["places"], link["taken"], link["completion"]) == (3, 1, "https://c.example/done")
    assert token not in json.dumps(link)
    assert json.loads(_raters(tmp_path, "links", "--close", link["id"], "--json").out) == []
    for words in (("link", "--places", "0"), ("links", "--close", "zz"), ("report", str(tmp_path / "t.csv")),
                  ("consents", str(tmp_path / "c.csv"))):  # fmt: skip
        refused = _raters(tmp_path, *words)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
