"""Webhooks against a real receiver: signed as the specification says, again until taken, and never in a vote's way."""

import base64
import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from alignment.records import Comparison
from preference_ui.import_export import export_votes
from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.labelling.revision import reopen
from preference_ui.labelling.voting import cast_vote
from preference_ui.snapshots.collections import CollectionTarget, open_collection, settle_collections
from preference_ui.store import schema
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store, now
from preference_ui.webhooks.endpoints import add_webhook, list_webhooks, remove_webhook, retry_webhook
from preference_ui.webhooks.outbox import EVENTS
from preference_ui.webhooks.sender import ATTEMPTS, Sender, retry_wait, send_due, take_due
from preference_ui.webhooks.signature import signed_headers

Make = Callable[..., Comparison]


class Receiver(ThreadingHTTPServer):
    """Answers with ``answers`` one after another, then with 200. While ``closed`` it lets everybody wait."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.open = threading.Event()
        self.open.set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?key=secret-key"

    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _headers, body in self.got]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.server.open.wait(30)
        status, headers = self.server.answers.pop(0) if self.server.answers else (200, {})
        self.send_response(status)
        for name, value in ({"content-length": "0"} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_words: Any) -> None:
        pass


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("NO_PROXY", "*")
    server = Receiver()
    yield server
    server.open.set()
    server.shutdown()
    server.server_close()


def _soon(_failed: int) -> float:
    return 0.0


def _ready(store: Store, comparison: Make, *names: str, votes: int = 1) -> None:
    store.change_settings(DeskSettings(gold_share=0, repeat_share=0), author="root")
    queue_comparisons(store, [comparison(name) for name in names], votes_wanted=votes, queue="towns")


def _vote(store: Store, rater: str, **verdict: Any) -> str:
    lease = next_lease(store, rater)
    assert lease is not None
    return cast_vote(store, rater, lease.id, {"outcome": "both_bad"} | verdict).vote_id


def _data(receiver: Receiver) -> list[dict[str, Any]]:
    return [json.loads(body)["data"] for _headers, body in receiver.got]


def _verify(secret: str, headers: dict[str, str], body: bytes) -> None:
    """As a receiver would, by the specification alone."""
    assert secret.startswith("whsec_")
    key = base64.b64decode(secret[6:])
    assert 24 <= len(key) <= 64
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    versions = [one.split(",", 1) for one in headers["webhook-signature"].split(" ")]
    assert ["v1", expected] in versions
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60


def test_the_signature_is_that_of_a_hand_calculation() -> None:
    """HMAC-SHA256 by its definition (RFC 2104), from SHA-256 alone."""
    key = bytes(range(32))
    secret = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="  # base64 of 00 01 … 1f
    padded = key + bytes(32)
    inner = hashlib.sha256(bytes(one ^ 0x36 for one in padded) + b'msg_1.1674087231.{"a": 1}').digest()
    outer = hashlib.sha256(bytes(one ^ 0x5C for one in padded) + inner).digest()
    assert signed_headers(secret, "msg_1", 1674087231, b'{"a": 1}') == {
        "webhook-id": "msg_1", "webhook-timestamp": "1674087231",
        "webhook-signature": f"v1,{base64.b64encode(outer).decode()}",
    }  # fmt: skip


def test_events_are_told_signed_each_to_whom_asked(
    store: Store, comparison: Make, add_rater: Callable[..., str], receiver: Receiver, tmp_path: Path
) -> None:
    _identifier, secret = add_webhook(store, receiver.url, EVENTS, actor="root")
    other = Receiver()
    _other, other_secret = add_webhook(store, other.url, ["record.flagged"], actor="root")
    _ready(store, comparison, "c")
    open_collection(store, "towns", CollectionTarget())
    ada = add_rater(store, "ada")
    flagged = _vote(store, ada, outcome="flagged", reason="personal_data", comment="secret-comment")
    changed = cast_vote(store, ada, reopen(store, ada).id, {"outcome": "ranked", "strength": -2}).vote_id
    settle_collections(store, tmp_path, lambda _queue, _export: None)
    assert send_due(store) == 5
    assert send_due(store) == 0
    for headers, body in receiver.got:
        _verify(secret, headers, body)
    [(headers, body)] = other.got
    _verify(other_secret, headers, body)
    other.shutdown()
    with pytest.raises(AssertionError):
        _verify(secret, headers, body)
    by_type: dict[str, list[Any]] = {}
    for kind, data in zip(receiver.types(), _data(receiver), strict=True):
        by_type.setdefault(kind, []).append(data)
    about = {"record": "c", "queue": "towns"}
    assert sorted(by_type["vote.given"], key=lambda one: one["outcome"]) == [
        about | {"vote": flagged, "outcome": "flagged", "supersedes": None},
        about | {"vote": changed, "outcome": "ranked", "supersedes": flagged},
    ]  # fmt: skip
    assert by_type["record.flagged"] == [about | {"vote": flagged, "reason": "personal_data", "held": True}]
    [ready] = by_type["collection.ready"]
    assert (ready["queue"], ready["rows"], ready["votes"], ready["raters"]) == ("towns", 1, 1, 1)
    everything = b"".join(body for _headers, body in receiver.got)
    for private in (b'"ada"', b"secret", b"Paris", str(tmp_path).encode()):
        assert private not in everything
    assert len({headers["webhook-id"] for headers, _body in receiver.got}) == 4


def test_nothing_is_told_of_what_was_rolled_back_of_gold_or_of_trials(
    store: Store, comparison: Make, add_rater: Callable[..., str]
) -> None:
    add_webhook(store, "https://host.example", EVENTS, actor="root")
    _ready(store, comparison, "c", votes=2)
    ada = add_rater(store, "ada")
    lease = next_lease(store, ada)
    assert lease is not None
    with store.write() as connection:
        change = update(schema.leases).where(schema.leases.c.id == lease.id)
        connection.execute(change.values(purpose="gold", holds_place=False))
    cast_vote(store, ada, lease.id, {"outcome": "both_bad"})
    with pytest.raises(Exception, match="Please choose a reason"):
        _vote(store, add_rater(store, "eve"), outcome="flagged", reason="nonsense")
    assert take_due(store) == []


def test_what_fails_is_sent_again_later_each_time_with_the_same_id(
    store: Store, comparison: Make, add_rater: Callable[..., str], receiver: Receiver
) -> None:
    _identifier, secret = add_webhook(store, receiver.url, ["vote.given"], actor="root")
    _ready(store, comparison, "c")
    _vote(store, add_rater(store, "ada"))
    receiver.answers = [(500, {}), (302, {"location": f"{receiver.url}&redirected"}), (429, {"retry-after": "3600"})]
    waits: list[int] = []

    def wait(failed: int) -> float:
        waits.append(failed)
        return 0.0

    assert [send_due(store, wait) for _ in range(4)] == [1, 1, 1, 0]
    assert (waits, len(receiver.got)) == ([1, 2, 3], 3)  # and the redirect was not followed
    [row] = list_webhooks(store)
    assert (row["waiting"], row["given_up"], row["trouble"], row["delivered"]) == (1, 0, "answered 429", None)
    with store.write() as connection:
        left = connection.execute(select(schema.deliveries)).one()
        assert timedelta(minutes=59) < left.due - now() <= timedelta(hours=1)  # as the receiver asked
        connection.execute(update(schema.deliveries).values(due=now()))
    assert send_due(store, wait) == 1
    for headers, body in receiver.got:
        _verify(secret, headers, body)
    assert len({(headers["webhook-id"], body) for headers, body in receiver.got}) == 1
    [row] = list_webhooks(store)
    assert (row["waiting"], row["trouble"]) == (0, "")
    assert now() - row["delivered"] < timedelta(minutes=1)


def test_the_waits_grow_threefold_to_half_a_day() -> None:
    for failed, seconds in ((1, 10), (2, 30), (3, 90), (4, 270), (8, 21_870), (9, 43_200), (ATTEMPTS, 43_200)):
        waits = [retry_wait(failed) for _ in range(50)]
        assert min(waits) >= 0.9 * seconds
        assert max(waits) <= 1.1 * seconds
        assert len(set(waits)) > 1


def test_it_is_given_up_after_ten_attempts_which_the_trail_and_the_log_say(
    store: Store, comparison: Make, add_rater: Callable[..., str], receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    identifier, secret = add_webhook(store, receiver.url, ["vote.given"], actor="root")
    _ready(store, comparison, "c")
    _vote(store, add_rater(store, "ada"))
    receiver.answers = [(503, {})] * 20
    with caplog.at_level(logging.DEBUG):
        assert sum(send_due(store, _soon) for _ in range(15)) == 10
    assert len(receiver.got) == 10
    [row] = list_webhooks(store)
    assert (row["waiting"], row["given_up"], row["trouble"]) == (0, 1, "answered 503")
    [line] = [line for line in store.audit_trail(subject=identifier) if line["action"] == "webhook.give_up"]
    assert (line["detail"]["attempts"], line["detail"]["trouble"]) == (10, "answered 503")
    assert "given up after 10 attempts" in caplog.text
    for private in (secret, secret[6:]):
        assert private not in caplog.text
        assert private not in str(store.audit_trail()) + str(list_webhooks(store))
    assert "secret-key" not in "".join(one.getMessage() for one in caplog.records if one.name.startswith("preference"))
    receiver.answers = []
    assert retry_webhook(store, identifier, actor="root") == 1
    assert send_due(store, _soon) == 1
    assert list_webhooks(store)[0]["given_up"] == 0


def test_a_restart_in_the_middle_loses_nothing(
    store_url: str, comparison: Make, add_rater: Callable[..., str], receiver: Receiver
) -> None:
    first = Store.open(store_url)
    _identifier, secret = add_webhook(first, receiver.url, ["vote.given"], actor="root")
    _ready(first, comparison, *(f"c{at}" for at in range(3)))
    ada = add_rater(first, "ada")
    votes = {_vote(first, ada) for _ in range(3)}
    receiver.answers = [(500, {})] * 2
    assert send_due(first, _soon) == 3  # two fail, one is taken
    assert len(take_due(first)[0]) == 2  # in hand when the process ends
    first.close()
    second = Store.open(store_url)
    sender = Sender(second, seconds=0.05, wait=_soon)
    sender.start()
    time.sleep(0.5)
    assert len(receiver.got) == 3  # not yet: the other process might be at work
    with second.write() as connection:
        connection.execute(update(schema.deliveries).values(due=now()))  # as when that time is over
    deadline = time.monotonic() + 20
    while list_webhooks(second)[0]["waiting"] and time.monotonic() < deadline:
        time.sleep(0.05)
    sender.stop()
    assert not sender.is_alive()
    for headers, body in receiver.got:
        _verify(secret, headers, body)
    assert {one["vote"] for one in _data(receiver)} == votes
    assert len(receiver.got) == 5
    second.close()


def test_a_receiver_that_hangs_keeps_neither_votes_nor_others_waiting(
    store: Store, comparison: Make, add_rater: Callable[..., str], receiver: Receiver
) -> None:
    other = Receiver()
    for one in (receiver, other):
        add_webhook(store, one.url, ["vote.given"], actor="root")
    _ready(store, comparison, *(f"c{at}" for at in range(6)))
    ada = add_rater(store, "ada")
    _vote(store, ada)
    receiver.open.clear()
    sender = Sender(store, seconds=0.05)
    sender.start()
    deadline = time.monotonic() + 20
    while not (receiver.got and other.got) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert receiver.got
    assert other.got
    given = {_vote(store, ada) for _ in range(5)}  # while it hangs
    with store.read() as connection:
        there = set(connection.execute(select(schema.votes.c.id)).scalars())
    assert given < there
    assert len(receiver.got) == 1
    receiver.open.set()
    while sum(one["waiting"] for one in list_webhooks(store)) and time.monotonic() < deadline + 20:
        time.sleep(0.05)
    sender.stop()
    other.shutdown()
    assert len({one["vote"] for one in _data(receiver)}) == len({one["vote"] for one in _data(other)}) == 6


def test_one_that_is_away_is_asked_once_a_look_and_one_that_is_gone_never_again(
    store: Store, comparison: Make, add_rater: Callable[..., str], receiver: Receiver
) -> None:
    _ready(store, comparison, *(f"c{at}" for at in range(5)))
    ada = add_rater(store, "ada")
    away, _secret = add_webhook(store, "http://127.0.0.1:9/nobody", ["vote.given"], actor="root")
    gone, _secret = add_webhook(store, receiver.url, ["vote.given"], actor="root")
    for _ in range(3):
        _vote(store, ada)
    receiver.answers = [(410, {})]
    send_due(store)
    rows = {row["id"]: row for row in list_webhooks(store)}
    assert (rows[away]["waiting"], rows[away]["trouble"]) == (3, "no connection")
    assert (rows[gone]["state"], rows[gone]["waiting"]) == ("gone", 0)
    _vote(store, ada)  # is left for one of them
    rows = {row["id"]: row for row in list_webhooks(store)}
    assert (rows[away]["waiting"], rows[gone]["waiting"], rows[gone]["given_up"]) == (4, 0, 3)
    assert len(receiver.got) == 1
    remove_webhook(store, away, actor="root")
    assert [row["id"] for row in list_webhooks(store)] == [gone]


def test_the_secret_is_in_no_export(
    store: Store, comparison: Make, add_rater: Callable[..., str], tmp_path: Path
) -> None:
    _identifier, secret = add_webhook(store, "https://host.example/h", EVENTS, actor="root")
    _ready(store, comparison, "c")
    _vote(store, add_rater(store, "ada"), outcome="ranked", strength=2)
    for what in ("votes", "pairs"):
        export_votes(store, tmp_path / f"{what}.jsonl", what=what)
        assert secret[6:] not in (tmp_path / f"{what}.jsonl").read_text()


@pytest.mark.parametrize(
    "url",
    ["", "host.example", "ftp://host.example", "file:///etc/passwd", "http://", "https://a:b@host.example",
     "https://host.example/#x", "https://host.example:99999", "https://ho st.example", "https://h.example/\n",
     "x" * 3_000],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(sqlite_store: Store, url: str) -> None:
    with pytest.raises(Exception, match=r"The address|no address"):
        add_webhook(sqlite_store, url, EVENTS, actor="root")
    with pytest.raises(Exception, match=r"no event 'vote\.taken'"):
        add_webhook(sqlite_store, "https://host.example", ["vote.taken"], actor="root")
    assert list_webhooks(sqlite_store) == []
