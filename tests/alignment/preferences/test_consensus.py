from collections.abc import Callable
from typing import Any

import krippendorff
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.preferences.consensus import consensus, current_votes, preference_pairs, rating_table
from alignment.preferences.dawid_skene import rater_skill
from alignment.preferences.vote_agreement import agreement_figures
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


@pytest.fixture(scope="module")
def people() -> tuple[list[Comparison], list[Vote], list[str]]:
    """300 pairs, three raters who are right in 90, 75 and 60 %, a tie now and then; and which answer is better."""
    rng = np.random.default_rng(0)
    skill = {"ada": 0.9, "bob": 0.75, "eve": 0.6}
    comparisons, votes, better = [], [], []
    for at in range(300):
        prompt = Prompt(id=f"p{at // 2}", messages=(Message(role="user", content=f"Well? {at // 2}"),))
        good, bad = (
            Response(id=f"{at}-{name}", prompt_id=prompt.id, text=f"{name} answer {at}", model="m", sampling=Sampling(),
                     seed=0, tokens=1, finished=True)
            for name in ("good", "bad")
        )  # fmt: skip
        comparisons.append(Comparison(id=f"c{at}", prompt=prompt, responses=(good, bad)))
        better.append(good.id)
        for rater, chance in skill.items():
            right = rng.random() < chance
            ranking = ((good.id, bad.id),) if rng.random() < 0.05 else ((good.id,), (bad.id,))
            ranking = ranking if right or len(ranking) == 1 else ranking[::-1]
            votes.append(Vote(id=f"{at}-{rater}", comparison_id=f"c{at}", rater=rater, rater_kind="human",
                              outcome="ranked", ranking=ranking))  # fmt: skip
    return comparisons, votes, better


def mirrored(comparison: Comparison) -> Comparison:
    return comparison.model_copy(update={"responses": comparison.responses[::-1]})


def test_agreement_does_not_hang_on_the_order_of_a_file(people: Any) -> None:
    """Chosen first, as files of pairs have it, or dealt by a coin: the same α and κ, to the last digit. With the better
    answer always on the left α is near 0, whatever the raters do."""
    comparisons, votes, _better = people
    rng = np.random.default_rng(1)
    dealt = [mirrored(one) if rng.random() < 0.5 else one for one in comparisons]
    shuffled = [dealt[i] for i in rng.permutation(len(dealt))]
    first = agreement_figures(comparisons, votes, bootstrap=200)
    other = agreement_figures(shuffled, [votes[i] for i in rng.permutation(len(votes))], bootstrap=200)
    assert first == other
    alpha = next(one for one in first if one.statistic == "krippendorff_alpha")
    codes = rng.integers(0, 2, size=len(comparisons))  # α by coins, from the library
    sign = {"left": 1, "right": 0, "tie": 2}
    rows = [
        [sign[one] if one == "tie" or not flip else 1 - sign[one] for one, flip in zip(row, codes, strict=True)]
        for row in (
            [_said(vote, comparison) for vote, comparison in zip(votes[k::3], comparisons, strict=True)]
            for k in range(3)
        )
    ]
    assert alpha.value == pytest.approx(krippendorff.alpha(np.array(rows), level_of_measurement="nominal"), abs=0.03)


def _said(vote: Vote, comparison: Comparison) -> str:
    if len(vote.ranking) == 1:
        return "tie"
    return "left" if vote.ranking[0] == (comparison.responses[0].id,) else "right"


def test_votes_weigh_their_log_odds(people: Any) -> None:
    """log(p / (1 - p)): 2.2 of who is right in 90 %, 1.1 in 75 %, 0.4 in 60 %; from other prompts alone."""
    comparisons, votes, _better = people
    skill = rater_skill(comparisons, votes)
    assert skill is not None
    for rater, right in (("ada", 0.9), ("bob", 0.75), ("eve", 0.6)):
        assert np.mean([one[rater] for one in skill.values()]) == pytest.approx(np.log(right / (1 - right)), abs=0.6)
    assert skill["c0"] == skill["c1"], "one prompt, one fold"
    turned = [vote.model_copy(update={"ranking": vote.ranking[::-1]}) if vote.comparison_id == "c0" else vote
              for vote in votes]  # fmt: skip
    again = rater_skill(comparisons, turned)
    assert again is not None
    assert again["c0"] == skill["c0"], "a pair's own votes say nothing of what they weigh"
    assert rater_skill(list(map(mirrored, comparisons)), votes) == skill
    assert rater_skill(comparisons[:40], [vote for vote in votes if int(vote.comparison_id[1:]) < 40]) is None


def test_the_consensus_that_is_trained_on_listens_to_the_better_raters(people: Any) -> None:
    """Two of 60 and 75 % against one of 90 %: by heads they win, by log-odds (1.1 + 0.4 < 2.2) they do not."""
    comparisons, votes, better = people
    by_heads = consensus(comparisons, votes)
    by_skill = consensus(comparisons, votes, skill=rater_skill(comparisons, votes))
    right = [sum(one.winner == best for one, best in zip(found, better, strict=True)) for found in (by_heads, by_skill)]
    assert right[1] > right[0] + 5
    assert all(0 <= one.agreement <= 1 for one in by_skill if one.agreement is not None)


def test_what_is_level_by_heads_needs_the_better_raters_by_far() -> None:
    votes = [vote("a>b", "ada"), vote("b>a", "bob")]
    assert consensus([PAIR], votes, skill={"c": {"ada": 2.0, "bob": 1.9}})[0].winner is None
    assert consensus([PAIR], votes, skill={"c": {"ada": 2.2, "bob": 1.1}})[0].winner == "a"
    assert consensus([PAIR], votes, skill={"c": {"ada": 0.0, "bob": 0.0}})[0].winner is None
    (verdict,) = consensus([PAIR], [*votes, vote("b>a", "eve")], skill={"c": {"ada": 3.0, "bob": 0.5, "eve": 0.5}})
    assert (verdict.winner, verdict.agreement) == ("a", 0.75)
