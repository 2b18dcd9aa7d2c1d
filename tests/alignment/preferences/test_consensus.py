from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.preferences.consensus import consensus, current_votes, preference_pairs, rating_table
from alignment.records import Comparison, Message, Prompt, Response, Sampling, Vote

Make = Callable[..., Any]


def compare(*texts: str) -> Comparison:
    prompt = Prompt(id="p", messages=(Message(role="user", content="Hi"),), kind="chat")
    responses = tuple(
        Response(id=name, prompt_id="p", text=text, model="m", sampling=Sampling(), seed=0, tokens=1, finished=True)
        for name, text in zip("abcd", texts, strict=False)
    )
    return Comparison(id="c", prompt=prompt, responses=responses)


def vote(what: str, rater: str = "r1", strength: int | None = None, **more: Any) -> Vote:
    """``a>b`` and ``a=b`` rank; anything else is an outcome."""
    ranked = any(sign in what for sign in ">=")
    ranking = tuple(tuple(group.split("=")) for group in what.split(">")) if ranked else ()
    fields = {
        "id": f"{rater}-{what}", "comparison_id": "c", "rater": rater, "rater_kind": "simulated", "ranking": ranking,
        "outcome": "ranked" if ranked else what, "strength": strength,
    }  # fmt: skip
    return Vote.model_validate(fields | more)


PAIR = compare("good", "bad")


def test_verdict_counts_every_kind_of_vote() -> None:
    votes = [
        vote("a>b", "r1", 3), vote("a>b", "r2", 1), vote("b>a", "r3", 1), vote("a=b", "r4", 0), vote("both_bad", "r5"),
        vote("skipped", "r6"), vote("flagged", "r7"),
    ]  # fmt: skip
    (verdict,) = consensus([PAIR], votes)
    counts = ("left_votes", "right_votes", "ties", "both_bad", "skips", "flagged", "votes")
    assert tuple(getattr(verdict, count) for count in counts) == (2, 1, 1, 1, 1, 1, 6)
    assert verdict.winner == "a"
    assert verdict.agreement == pytest.approx(2 / 6)
    assert verdict.strength == pytest.approx((3 + 1 - 1 + 0) / 4)


def test_pairs_carry_the_margin_toward_their_winner() -> None:
    votes = [vote("b>a", "r1", 3), vote("b>a", "r2", 2), vote("a>b", "r3", 1)]
    (pair,) = preference_pairs(consensus([PAIR], votes), [PAIR], 0.5)
    assert (pair.chosen, pair.rejected, pair.raters, pair.kind) == ("bad", "good", 3, "chat")
    assert pair.margin == pytest.approx((3 + 2 - 1) / 3)
    assert pair.agreement == pytest.approx(2 / 3)
    assert pair.rater_kind == "simulated"
    assert preference_pairs(consensus([PAIR], votes), [PAIR], 0.7) == []


@pytest.mark.parametrize(
    "votes",
    [
        [],
        [vote("a=b", "r1", 0)],
        [vote("skipped", "r1")],
        [vote("flagged", "r1")],
        [vote("both_bad", "r1"), vote("both_bad", "r2")],
        [vote("a>b", "r1", 1), vote("b>a", "r2", 3)],  # level
        [vote("a>b", "r1", 1), vote("a>b", "r2", 1), vote("b>a", "r3", 3)],  # the strength speaks against the winner
    ],
)
def test_what_is_no_win_is_not_trained_on(votes: list[Vote]) -> None:
    assert preference_pairs(consensus([PAIR], votes), [PAIR], 0.0) == []


def test_unknown_strength_leaves_the_margin_open() -> None:
    (pair,) = preference_pairs(consensus([PAIR], [vote("a>b")]), [PAIR], 1.0)
    assert pair.margin is None


def test_rankings_are_broken_into_all_pairs() -> None:
    asked = compare("w", "x", "y", "z")
    verdicts = consensus([asked], [vote("c>a=d>b", "r1"), vote("c>d>a>b", "r2")])
    assert {(v.left, v.right): v.winner for v in verdicts} == {
        ("a", "b"): "a", ("a", "c"): "c", ("a", "d"): "d", ("b", "c"): "c", ("b", "d"): "d", ("c", "d"): "c",
    }  # fmt: skip
    assert next(v for v in verdicts if (v.left, v.right) == ("a", "d")).agreement == 0.5
    assert len(preference_pairs(verdicts, [asked], 0.6)) == 5
    assert len({pair.id for pair in preference_pairs(verdicts, [asked], 0.5)}) == 6


def test_only_the_newest_version_of_a_vote_counts() -> None:
    first = vote("a>b", "r1", 1)
    second = vote("b>a", "r1", 1, id="second", supersedes=first.id)
    third = vote("a=b", "r1", 0, id="third", supersedes="second")
    foreign = vote("b>a", "r2", 1, supersedes="third")  # nobody can take back another rater's vote
    assert current_votes([third, first, second, foreign, first]) == [third, foreign]
    (verdict,) = consensus([PAIR], [first, second, third])
    assert (verdict.ties, verdict.votes, verdict.winner) == (1, 1, None)


def test_a_pair_is_only_as_human_as_its_least_human_rater() -> None:
    people = [vote("a>b", "r1", rater_kind="human"), vote("a>b", "r2", rater_kind="human")]
    assert consensus([PAIR], people)[0].rater_kind == "human"
    assert consensus([PAIR], [*people, vote("b>a", "r3")])[0].rater_kind == "simulated"
    assert consensus([PAIR], [*people, vote("skipped", "r3")])[0].rater_kind == "human"


def test_votes_that_do_not_fit_are_errors() -> None:
    with pytest.raises(ValueError, match="unknown comparison"):
        consensus([PAIR], [vote("a>b", comparison_id="x")])
    with pytest.raises(ValueError, match="does not rank"):
        consensus([PAIR], [vote("a>z")])
    with pytest.raises(ValueError, match="does not rank"):
        consensus([compare("x", "y", "z")], [vote("a>b")])


def test_rating_table_has_a_row_for_each_rater() -> None:
    votes = [vote("a>b", "r1"), vote("skipped", "r2"), vote("both_bad", "r3")]
    silent = PAIR.model_copy(update={"id": "silent"})
    assert rating_table([PAIR, silent], votes) == {"r1": ["left", None], "r2": [None, None], "r3": ["both_bad", None]}


@given(st.lists(st.sampled_from(["a>b", "b>a", "a=b", "both_bad", "skipped", "flagged"]), max_size=9), st.randoms())
def test_consensus_is_symmetric_and_blind_to_order(whats: list[str], order: Any) -> None:
    votes = [vote(what, f"r{i}", {">": 2, "=": 0}.get(what[1:2])) for i, what in enumerate(whats)]
    (verdict,) = consensus([PAIR], votes)
    order.shuffle(votes)
    assert consensus([PAIR], votes) == [verdict]
    mirrored = PAIR.model_copy(update={"responses": PAIR.responses[::-1]})
    (other,) = consensus([mirrored], votes)
    assert (other.winner, other.agreement) == (verdict.winner, verdict.agreement)
    assert verdict.strength is None or other.strength == pytest.approx(-verdict.strength)
    pairs = preference_pairs([verdict], [PAIR], 0.5)
    assert preference_pairs([other], [mirrored], 0.5) == pairs
    assert all(pair.margin == pytest.approx(abs(verdict.strength or 0)) and pair.margin > 0 for pair in pairs)
