"""The arena: what is stored of a talk, what its votes say, and attacks over raw HTTP. All fail if they work."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import DatabaseError

from alignment.data.preferences import read_preferences
from alignment.errors import InputError
from alignment.records import Message
from preference_ui.app import create_app
from preference_ui.arena.responders import SORRY, Speakers
from preference_ui.arena.talks import Contestant, leave_talk, own_talk, say, settle_turn, talk_in_hand, vote_on_talk
from preference_ui.arena.votes import export_talks, matches, read_talk_votes
from preference_ui.labelling.exclusion import exclude_rater, include_rater
from preference_ui.store import schema
from preference_ui.store.errors import Refusal
from preference_ui.store.store import Store

Add = Callable[..., str]
FUNCTIONS = ("enter", "tell", "listen", "judge", "leave")
A_BETTER = {"outcome": "ranked", "strength": -2}


def _contestant(name: str) -> Contestant:
    def answer(messages: Sequence[Message], seed: int) -> Iterator[str]:
        said = f"{name} heard {len(messages)}"
        yield from (said[:at] for at in range(1, len(said) + 1))

    return Contestant(name, f"digest-{name}", answer)


PAIR = [_contestant("one"), _contestant("two")]


def _talked(store: Store, rater: str, *said: str) -> str:
    """A talk in which A always answers "alpha" and B "beta"."""
    talk = talk_in_hand(store, rater, PAIR)
    for at, text in enumerate(said):
        say(store, rater, talk.id, text)
        settle_turn(store, talk.id, at, (f"alpha {at}", f"beta {at}"))
    return talk.id


def test_a_talk_grows_is_voted_on_once_and_then_stands(store: Store, add_rater: Add) -> None:
    ada = add_rater(store, "ada")
    talk = talk_in_hand(store, ada, PAIR)
    assert {name for name, _ in talk.versions} == {"one", "two"}
    assert talk_in_hand(store, ada, PAIR) == talk  # a reload
    for early in (lambda: vote_on_talk(store, ada, talk.id, A_BETTER),):
        with pytest.raises(Refusal, match="until both have answered"):
            early()
    say(store, ada, talk.id, " Hello ")
    with pytest.raises(Refusal, match="until both have answered"):
        say(store, ada, talk.id, "more")
    with pytest.raises(Refusal, match="until both have answered"):
        vote_on_talk(store, ada, talk.id, A_BETTER)
    settle_turn(store, talk.id, 0, ("alpha", "beta"))
    settle_turn(store, talk.id, 0, ("late", "late"))  # a second answer to the same turn changes nothing
    say(store, ada, talk.id, "And now?")
    settle_turn(store, talk.id, 1, ("gamma", "delta"))
    known = own_talk(store, ada, talk.id)
    assert [(turn.role, turn.content) for turn in known.messages(1)] == [
        ("user", "Hello"), ("assistant", "beta"), ("user", "And now?"), ("assistant", "delta"),
    ]  # fmt: skip
    assert vote_on_talk(store, ada, talk.id, A_BETTER).state == "voted"
    assert vote_on_talk(store, ada, talk.id, {"outcome": "ranked", "strength": 3}).state == "voted"
    with store.read() as connection:
        assert connection.execute(select(schema.talk_votes.c.strength)).scalars().all() == [-2]
    with pytest.raises(Refusal, match="over"):
        say(store, ada, talk.id, "once more")
    assert talk_in_hand(store, ada, PAIR).id != talk.id
    assert [line["action"] for line in store.audit_trail()][:1] == ["talk.vote"]


def test_the_database_itself_refuses_to_change_what_was_voted_on(store: Store, add_rater: Add) -> None:
    ada = add_rater(store, "ada")
    talk = _talked(store, ada, "Hello")
    vote_on_talk(store, ada, talk, A_BETTER)
    changes = (
        update(schema.talk_votes).values(strength=3), delete(schema.talk_votes), delete(schema.talks),
        update(schema.talks).values(turns=[]), update(schema.talks).values(versions=[["x", "x"], ["y", "y"]]),
        update(schema.talks).values(state="open"),
    )  # fmt: skip
    for change in changes:
        with pytest.raises(DatabaseError, match=r"append-only|foreign key"), store.write() as connection:
            connection.execute(change)


def test_another_persons_talk_and_an_invented_one_get_the_same_sentence(sqlite_store: Store, add_rater: Add) -> None:
    ada, eve = add_rater(sqlite_store, "ada"), add_rater(sqlite_store, "eve")
    talk = _talked(sqlite_store, ada, "Hello")
    for identifier in (talk, "invented", "", None, 7, ["x"], "x" * 500, "\0", "\ud800"):
        for act in (
            lambda one: say(sqlite_store, eve, one, "Hello"),
            lambda one: vote_on_talk(sqlite_store, eve, one, A_BETTER),
            lambda one: leave_talk(sqlite_store, eve, one),
            lambda one: own_talk(sqlite_store, eve, one),
        ):
            with pytest.raises(Refusal, match="This talk is not yours"):
                act(identifier)
    assert own_talk(sqlite_store, ada, talk).state == "open"


@pytest.mark.parametrize(
    "wire",
    [None, [], "x", {}, {"outcome": "ranked"}, {"outcome": "both_bad", "strength": 1}, {"outcome": "skipped"},
     {"outcome": "ranked", "strength": 4}, {"outcome": "ranked", "strength": True},
     {"outcome": "ranked", "strength": 1.5},
     {"outcome": "ranked", "strength": 1, "more": 1}, {"outcome": "both_bad", "comment": "x" * 3000},
     {"outcome": "both_bad", "comment": "\0"}],
)  # fmt: skip
def test_what_is_no_vote_is_refused(sqlite_store: Store, add_rater: Add, wire: Any) -> None:
    ada = add_rater(sqlite_store, "ada")
    talk = _talked(sqlite_store, ada, "Hello")
    with pytest.raises(Refusal, match="could not be read"):
        vote_on_talk(sqlite_store, ada, talk, wire)
    assert own_talk(sqlite_store, ada, talk).state == "open"


def test_a_paused_rater_neither_talks_nor_votes(sqlite_store: Store, add_rater: Add) -> None:
    ada = add_rater(sqlite_store, "ada")
    talk = _talked(sqlite_store, ada, "Hello")
    with sqlite_store.write() as connection:
        connection.execute(update(schema.accounts).values(state="paused"))
    for act in (
        lambda: talk_in_hand(sqlite_store, ada, PAIR),
        lambda: say(sqlite_store, ada, talk, "Hello"),
        lambda: vote_on_talk(sqlite_store, ada, talk, A_BETTER),
    ):
        with pytest.raises(Refusal, match="paused"):
            act()


def test_sides_are_drawn_evenly(sqlite_store: Store, add_rater: Add) -> None:
    ada, first = add_rater(sqlite_store, "ada"), 0
    for _ in range(100):
        talk = talk_in_hand(sqlite_store, ada, PAIR)
        first += talk.versions[0][0] == "one"
        leave_talk(sqlite_store, ada, talk.id)
    assert abs(first - 50) <= 20  # four deviations of binomial(100, 0.5)


def test_the_arena_needs_two_different_versions(sqlite_store: Store) -> None:
    for wrong in ([PAIR[0]], [PAIR[0], PAIR[0]]):
        with pytest.raises(InputError, match="two different versions"):
            create_app(sqlite_store, contestants=wrong)


# ---- who speaks when


def _heard(speakers: Speakers, talk: str) -> None:
    end = time.monotonic() + 20
    while speakers.live(talk) is not None:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_fast_version_is_held_back_to_the_pace_of_a_slow_one(sqlite_store: Store, add_rater: Add) -> None:
    go = threading.Semaphore(0)

    def slow(messages: Sequence[Message], seed: int) -> Iterator[str]:
        for at in range(1, 5):
            go.acquire()
            yield "s" * at

    def fast(messages: Sequence[Message], seed: int) -> Iterator[str]:
        yield from ("f" * at for at in range(1, 9))

    speakers = Speakers(sqlite_store, [Contestant("slow", "1", slow), Contestant("fast", "2", fast)])
    ada = add_rater(sqlite_store, "ada")
    talk = talk_in_hand(sqlite_store, ada, speakers.contestants)
    live = speakers.begin(say(sqlite_store, ada, talk.id, "Hello"))
    for _ in range(2):
        go.release()
    end = time.monotonic() + 20
    while live.heard < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.1)
    assert sorted(map(len, live.texts)) in ([2, 2], [2, 3])  # never ahead by more than the piece under way
    for _ in range(2):
        go.release()
    _heard(speakers, talk.id)
    answers = own_talk(sqlite_store, ada, talk.id).turns[0]["answers"]
    assert sorted(answers) == ["ffffffff", "ssss"]
    speakers.close()


def test_a_version_that_fails_gives_the_message_back_and_is_not_named(sqlite_store: Store, add_rater: Add) -> None:
    def broken(messages: Sequence[Message], seed: int) -> Iterator[str]:
        yield "half"
        raise RuntimeError("secret-version broke")

    speakers = Speakers(sqlite_store, [PAIR[0], Contestant("secret-version", "2", broken)])
    ada = add_rater(sqlite_store, "ada")
    talk = talk_in_hand(sqlite_store, ada, speakers.contestants)
    speakers.begin(say(sqlite_store, ada, talk.id, "Hello"))
    _heard(speakers, talk.id)
    assert speakers.problem(talk.id) == SORRY
    assert own_talk(sqlite_store, ada, talk.id).turns == ()
    speakers.close()


def test_an_app_that_died_while_they_spoke_lets_them_speak_again(sqlite_store: Store, add_rater: Add) -> None:
    ada = add_rater(sqlite_store, "ada")
    talk = talk_in_hand(sqlite_store, ada, PAIR)
    say(sqlite_store, ada, talk.id, "Hello")  # and nobody answers: the process is gone
    speakers = Speakers(sqlite_store, PAIR)
    again = talk_in_hand(sqlite_store, ada, PAIR)
    assert again.unanswered
    speakers.begin(again)
    _heard(speakers, talk.id)
    names = [name for name, _ in talk.versions]
    assert own_talk(sqlite_store, ada, talk.id).turns[0]["answers"] == [f"{name} heard 1" for name in names]
    changed = talk_in_hand(sqlite_store, ada, [PAIR[0], _contestant("three")])  # and with other versions than before
    assert changed.id != talk.id
    assert own_talk(sqlite_store, ada, talk.id).state == "left"
    speakers.close()


def test_an_answer_that_was_cut_off_is_told_in_exports(sqlite_store: Store, add_rater: Add, tmp_path: Path) -> None:
    def cut(messages: Sequence[Message], seed: int) -> Iterator[str]:
        yield "It goes on and"
        return False  # as a stream that reached its longest length

    speakers = Speakers(sqlite_store, [PAIR[0], Contestant("cut", "2", cut)])
    ada = add_rater(sqlite_store, "ada")
    for strength in (-3, 3):
        talk = talk_in_hand(sqlite_store, ada, speakers.contestants)
        speakers.begin(say(sqlite_store, ada, talk.id, "Hello"))
        _heard(speakers, talk.id)
        vote_on_talk(sqlite_store, ada, talk.id, {"outcome": "ranked", "strength": strength})
    old = _talked(sqlite_store, ada, "Hello")  # turns from before it was kept
    with sqlite_store.write() as connection:
        [turns] = connection.execute(select(schema.talks.c.turns).where(schema.talks.c.id == old)).scalars().all()
        plain = [{name: turn[name] for name in ("said", "answers")} for turn in turns]
        connection.execute(update(schema.talks).where(schema.talks.c.id == old).values(turns=plain))
    vote_on_talk(sqlite_store, ada, old, A_BETTER)
    export_talks(sqlite_store, tmp_path / "pairs.jsonl", pairs=True)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    for row in rows:
        for side in ("chosen", "rejected"):
            assert row[f"{side}_finished"] == (row[side][-1]["content"] != "It goes on and")
    assert len(rows) == 3
    read = {pair.chosen: (pair.chosen_finished, pair.rejected_finished)
            for pair in read_preferences(tmp_path / "pairs.jsonl").pairs}  # fmt: skip
    assert all(ended == (chosen != "It goes on and", chosen in ("It goes on and", "alpha 0"))
               for chosen, ended in read.items())  # fmt: skip
    speakers.close()


# ---- what the votes say


@pytest.fixture
def voted(store: Store, add_rater: Add) -> Store:
    """Ada likes A twice, much and slightly, ties once, and finds both bad once; Bob likes B."""
    ada, bob = add_rater(store, "ada"), add_rater(store, "bob")
    for rater, wire in (
        (ada, {"outcome": "ranked", "strength": -3}), (ada, {"outcome": "ranked", "strength": -1}),
        (ada, {"outcome": "ranked", "strength": 0}), (ada, {"outcome": "both_bad"}),
        (bob, {"outcome": "ranked", "strength": 2}),
    ):  # fmt: skip
        talk = _talked(store, rater, "Hello", "And now?")
        vote_on_talk(store, rater, talk, wire)
    return store


def test_votes_come_out_with_both_conversations(voted: Store, tmp_path: Path) -> None:
    votes = read_talk_votes(voted)
    assert sorted((vote.verdict, vote.strength) for vote in votes if vote.strength is not None) == [
        ("a", 1), ("a", 3), ("b", 2), ("tie", 0),
    ]  # fmt: skip
    export = export_talks(voted, tmp_path / "pairs.jsonl", pairs=True)
    assert (export.rows, export.votes, export.raters) == (3, 5, 2)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert {row["margin"] for row in rows} == {1.0, 2.0, 3.0}
    for row in rows:
        better, worse = ("beta", "alpha") if row["margin"] == 2 else ("alpha", "beta")
        assert [turn["content"] for turn in row["chosen"]] == ["Hello", f"{better} 0", "And now?", f"{better} 1"]
        assert [turn["content"] for turn in row["rejected"]] == ["Hello", f"{worse} 0", "And now?", f"{worse} 1"]
        assert {row["chosen_version"], row["rejected_version"]} == {"one", "two"}
        assert row["rater"].startswith("rater-")
    again = export_talks(voted, tmp_path / "again.jsonl", pairs=True)
    assert again.digest == export.digest
    assert export_talks(voted, tmp_path / "all.jsonl", pairs=False).rows == 5


def test_matches_by_hand_and_excluding_is_reversible(voted: Store) -> None:
    votes = read_talk_votes(voted)
    (match,) = matches(votes)
    assert (match.first, match.second, match.ties, match.both_bad) == ("one", "two", 1, 1)
    wins = sum({"a": vote.a, "b": vote.b}.get(vote.verdict) == "one" for vote in votes)
    assert (match.wins, match.losses) == (wins, 3 - wins)
    assert match.share.value == pytest.approx((wins + 0.5) / 4)
    assert exclude_rater(voted, "id-ada", actor="root", reason="test") == 4
    (left,) = matches(read_talk_votes(voted))
    assert (left.wins + left.losses, left.ties, left.both_bad) == (1, 0, 0)
    assert include_rater(voted, "id-ada", actor="root") == 4
    assert len(read_talk_votes(voted)) == 5


# ---- over HTTP


def _votes(app: Any) -> int:
    with app.store.read() as connection:
        return int(connection.execute(select(func.count()).select_from(schema.talk_votes)).scalar_one())


def _call(app: Any, client: httpx.Client, function: str, data: Any = None, **more: Any) -> Any:
    return app.call(client, function, data, page="/arena", **more)


def _listen(app: Any, client: httpx.Client, talk: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Listens until both have answered: the last screen, and all that came before it."""
    heard, came = 0, []
    while True:
        reply = _call(app, client, "listen", {"talk": talk, "heard": heard})
        assert reply["ok"], reply
        if "turns" in reply:
            return reply, came
        came.append(reply)
        heard = reply.get("heard", heard)


@pytest.mark.parametrize("cookie", [{}, {"rlhf_session": "invented"}])
def test_nothing_answers_without_a_login(running_app: Any, cookie: dict[str, str]) -> None:
    stranger = httpx.Client(base_url=running_app.url, cookies=cookie)
    for function in FUNCTIONS:
        assert _call(running_app, stranger, function).status_code == 401
    for path in ("/config", "/gradio_api/info", "/theme.css"):
        assert stranger.get("/arena" + path).status_code == 401
    assert stranger.get("/arena").status_code == 303


def test_names_are_told_after_the_vote_and_nothing_tells_them_before(running_app: Any) -> None:
    ada = running_app.sign_in("ada")
    seen = [ada.get("/arena/").text, ada.get("/arena/config").text]
    entered = _call(running_app, ada, "enter")
    talk = entered["talk"]
    said = _call(running_app, ada, "tell", {"talk": talk, "text": "Hello"})
    first, streamed = _listen(running_app, ada, talk)
    _call(running_app, ada, "tell", {"talk": talk, "text": "And now?"})
    second, more = _listen(running_app, ada, talk)
    refused = _call(running_app, ada, "judge", {"talk": talk, "vote": {"outcome": "ranked", "strength": 9}})
    assert refused["code"] == "malformed"
    seen += [json.dumps(one) for one in (entered, said, first, second, refused, *streamed, *more)]
    for text in seen:
        for secret in ("secret-version", "digest-", '"seed"', '"versions"'):
            assert secret not in text
    assert len(streamed) >= 2  # it came in pieces
    assert [len(turn["answers"]) for turn in second["turns"]] == [2, 2]
    assert all(reply["names"] is None for reply in (entered, said, first, second))
    voted = _call(running_app, ada, "judge", {"talk": talk, "vote": A_BETTER})
    assert sorted(voted["names"]) == ["secret-version-one", "secret-version-two"]
    before = _votes(running_app)
    again = _call(running_app, ada, "judge", {"talk": talk, "vote": {"outcome": "ranked", "strength": 3}})
    assert again["names"] == voted["names"]
    assert _votes(running_app) == before
    late = _call(running_app, ada, "tell", {"talk": talk, "text": "One more"})
    assert (late["ok"], late["code"]) == (False, "over")
    with running_app.store.read() as connection:
        mine = schema.talk_votes.c.talk_id == talk
        assert connection.execute(select(schema.talk_votes.c.strength).where(mine)).scalars().all() == [-2]


def test_leaving_tells_no_names(running_app: Any) -> None:
    ada = running_app.sign_in("ada")
    talk = _call(running_app, ada, "enter")["talk"]
    _call(running_app, ada, "tell", {"talk": talk, "text": "Hello"})
    _listen(running_app, ada, talk)
    left = _call(running_app, ada, "leave", {"talk": talk})
    assert left["talk"] != talk
    late = _call(running_app, ada, "judge", {"talk": talk, "vote": A_BETTER})
    assert (late["ok"], late["code"]) == (False, "over")
    after = _call(running_app, ada, "listen", {"talk": talk, "heard": 0})
    assert after["names"] is None
    assert "secret-version" not in json.dumps([left, late, after])


def test_anothers_talk_is_neither_heard_nor_voted_on(running_app: Any) -> None:
    ada, eve = running_app.sign_in("ada"), running_app.sign_in("eve")
    talk = _call(running_app, ada, "enter")["talk"]
    _call(running_app, ada, "tell", {"talk": talk, "text": "slowly please"})
    before = _votes(running_app)
    for data, function in (
        ({"talk": talk, "heard": 0}, "listen"), ({"talk": talk, "text": "x"}, "tell"),
        ({"talk": talk, "vote": A_BETTER}, "judge"), ({"talk": talk}, "leave"),
    ):  # fmt: skip
        for session in ("abc", talk):  # a session hash gives no identity either
            reply = _call(running_app, eve, function, data, session_hash=session)
            assert (reply["ok"], reply["code"]) == (False, "no_talk")
    finished, _ = _listen(running_app, ada, talk)
    for data, function in (({"talk": talk, "heard": 0}, "listen"), ({"talk": talk, "vote": A_BETTER}, "judge")):
        assert _call(running_app, eve, function, data)["code"] == "no_talk"
    assert _votes(running_app) == before
    assert len(finished["turns"]) == 1


def test_scripts_in_what_is_said_reach_the_browser_as_text(running_app: Any) -> None:
    attack = "<img src=x onerror=alert(1)><script>alert(1)</script>[x](javascript:alert(1))"
    ada = running_app.sign_in("ada")
    talk = _call(running_app, ada, "enter")["talk"]
    _call(running_app, ada, "tell", {"talk": talk, "text": attack})
    screen, streamed = _listen(running_app, ada, talk)
    shown = [screen["turns"][0]["said"], *(one["html"] for one in screen["turns"][0]["answers"])]
    shown += [one["html"] for reply in streamed for one in reply.get("answers", [])]
    for html in shown:  # the versions of this app say again what they heard
        assert "<script" not in html
        assert "<img" not in html
        assert "href" not in html
    assert "&lt;script" in shown[1]


def test_too_much_nonsense_and_other_sites_are_refused(running_app: Any) -> None:
    ada = running_app.sign_in("ada")
    talk = _call(running_app, ada, "enter")["talk"]
    for text in ("", "   ", "x" * 4001, "a\0b", 7, None, ["x"]):
        reply = _call(running_app, ada, "tell", {"talk": talk, "text": text})
        assert (reply["ok"], reply["code"]) == (False, "malformed")
    for heard in (True, 1.5, "0", None):
        assert not _call(running_app, ada, "listen", {"talk": talk, "heard": heard})["ok"]
    for function in ("tell", "listen", "judge", "leave"):
        for data in (None, [], {}, {"talk": talk, "more": 1}, "text"):
            assert _call(running_app, ada, function, data)["code"] == "malformed"
    component = running_app.component("/arena")
    body = {"data": {"talk": talk, "text": "x"}, "component_id": component, "fn_name": "tell", "session_hash": "a"}
    away = {"origin": "https://evil.example"}
    assert ada.post("/arena/gradio_api/component_server/", json=body, headers=away).status_code == 403
    assert _call(running_app, ada, "enter")["turns"] == []
    early = _call(running_app, ada, "judge", {"talk": talk, "vote": A_BETTER})
    assert (early["ok"], early["code"]) == (False, "early")
