import math
import random
from collections.abc import Callable

import numpy as np
import pytest

from alignment.preferences.dawid_skene import dawid_skene, has_enough
from alignment.preferences.vote_agreement import agreement_figures
from alignment.records import Comparison, Vote
from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.exclusion import exclude_rater, include_rater
from preference_ui.labelling.queue import Gold, queue_comparisons, queue_gold, waiting
from preference_ui.labelling.voting import cast_vote
from preference_ui.quality.rater_quality import quality_report, share
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store

Make = Callable[..., Comparison]
Add = Callable[..., str]
MIXED = DeskSettings(gold_share=0.25, repeat_share=0.25, random_share=0, repeat_after=1)


def _prefer(store: Store, account: str, wanted: Callable[[str], str], rng: random.Random) -> None:
    """Votes on all there is; ``wanted`` says which answer (a or b) of a comparison, or "tie"."""
    while (lease := next_lease(store, account, rng=rng)) is not None:
        choice = wanted(lease.comparison.id)
        first = lease.order[0].endswith(f"-{choice}")
        strength = 0 if choice == "tie" else (-2 if first else 2)
        cast_vote(store, account, lease.id, {"outcome": "ranked", "strength": strength})


@pytest.fixture
def voted(sqlite_store: Store, comparison: Make, add_rater: Add) -> Store:
    """12 comparisons × 3 raters, 6 gold: ada and bob are right, eve always says the opposite."""
    sqlite_store.change_settings(MIXED, author="root")
    queue_comparisons(sqlite_store, [comparison(f"c{at:02}") for at in range(12)], votes_wanted=3)
    queue_gold(sqlite_store, [Gold(comparison(f"g{at}"), ((f"g{at}-a",), (f"g{at}-b",))) for at in range(6)])
    for name, choice in (("ada", "a"), ("bob", "a"), ("eve", "b")):
        _prefer(sqlite_store, add_rater(sqlite_store, name), lambda _id, choice=choice: choice, random.Random(name))
    return sqlite_store


def test_every_rater_is_measured_against_gold_themselves_and_the_others(voted: Store) -> None:
    report = quality_report(voted)
    raters = {rater.name: rater for rater in report.raters}
    assert (report.votes, report.comparisons, report.consensus) == (36, 12, "majority")
    for name, right in (("ada", 1.0), ("bob", 1.0), ("eve", 0.0)):
        assert raters[name].gold.of > 0
        assert raters[name].gold.value == right
        assert raters[name].consistency.of > 0
        assert raters[name].consistency.value == 1.0
    # Of ada's others, bob says a and eve says b: no consensus. Eve's others both say a, and she never does.
    assert (raters["eve"].agreement.hits, raters["eve"].agreement.of) == (0, 12)
    assert raters["ada"].agreement.of == 0
    assert raters["ada"].fast.value == 1.0  # nobody reads that fast


def test_agreement_by_hand(voted: Store) -> None:
    figures = {one.statistic: one for one in quality_report(voted).agreement if one.of == "verdict"}
    # In each unit one pair of three agrees. α = 1 - D_o/D_e with 24 a and 12 b of n = 36:
    # D_o = 2/3, D_e = 2·24·12/(36·35) = 0.45714…; κ: p_o = 1/3, p_e = (2/3)² + (1/3)².
    assert math.isclose(figures["percent_agreement"].value or 0, 1 / 3)
    assert math.isclose(figures["krippendorff_alpha"].value or 0, 1 - (2 / 3) / (2 * 24 * 12 / (36 * 35)))
    assert math.isclose(figures["fleiss_kappa"].value or 0, (1 / 3 - 5 / 9) / (4 / 9))
    assert figures["krippendorff_alpha"].units == 12


def test_criteria_have_their_own_agreement() -> None:
    def vote(rater: str, score: int) -> Vote:
        return Vote(id=f"{rater}", comparison_id="c", rater=rater, rater_kind="human", outcome="both_bad",
                    criteria={"helpful:r1": score, "helpful:r2": 6 - score})  # fmt: skip

    same = agreement_figures([_empty()], [vote("ada", 5), vote("bob", 5)])
    figures = {(one.of, one.statistic): one.value for one in same}
    assert figures["helpful", "krippendorff_alpha"] == 1.0
    assert figures["helpful", "percent_agreement"] == 1.0
    opposite = agreement_figures([_empty()], [vote("ada", 5), vote("bob", 1)])
    assert {(one.of, one.statistic): one.value for one in opposite}["helpful", "percent_agreement"] == 0.0


def _empty() -> Comparison:
    response = {"prompt_id": "p", "text": "x", "model": "m", "sampling": {}, "seed": 0, "tokens": 0, "finished": True}
    prompt = {"id": "p", "messages": [{"role": "user", "content": "?"}]}
    return Comparison.model_validate(
        {"id": "c", "prompt": prompt, "responses": [response | {"id": "r1"}, response | {"id": "r2"}]}
    )


def test_excluding_is_reversible_and_asks_others_again(voted: Store) -> None:
    before = quality_report(voted)
    eve = next(rater for rater in before.raters if rater.name == "eve")
    assert waiting(voted) == 0
    assert exclude_rater(voted, eve.account, actor="root", reason="always the opposite") == eve.votes
    after = quality_report(voted)
    assert (after.votes, waiting(voted)) == (24, 12)
    assert next(one.value for one in after.agreement if one.statistic == "percent_agreement") == 1.0
    assert next(rater for rater in after.raters if rater.name == "eve").excluded == eve.votes
    assert exclude_rater(voted, eve.account, actor="root", reason="again") == 0
    assert include_rater(voted, eve.account, actor="root") == eve.votes
    assert quality_report(voted).model_dump() == before.model_dump()
    assert waiting(voted) == 0
    trail = [(line["actor"], line["action"], line["detail"]["votes"]) for line in voted.audit_trail(subject="eve")[:3]]
    assert trail == [
        ("root", "votes.include", eve.votes),
        ("root", "votes.exclude", 0),
        ("root", "votes.exclude", eve.votes),
    ]


def test_excluding_twice_never_asks_more_than_wanted(voted: Store, add_rater: Add) -> None:
    """Eve out, zoe votes in her place, eve in and out again: the places zoe took stay taken."""
    eve = next(rater for rater in quality_report(voted).raters if rater.name == "eve")
    exclude_rater(voted, eve.account, actor="root", reason="x")
    _prefer(voted, add_rater(voted, "zoe"), lambda _id: "a", random.Random(1))
    assert waiting(voted) == 0
    include_rater(voted, eve.account, actor="root")
    exclude_rater(voted, eve.account, actor="root", reason="x")
    assert waiting(voted) == 0


def test_a_share_has_wilsons_interval() -> None:
    one = share(8, 10)  # Wilson by hand: centre (8 + z²/2)/(10 + z²), z = 1.959964
    z2 = 1.959963984540054**2
    centre = (8 + z2 / 2) / (10 + z2)
    half = math.sqrt(z2) / (10 + z2) * math.sqrt(8 * 2 / 10 + z2 / 4)
    assert one.value == 0.8
    assert math.isclose(one.low or 0, centre - half, rel_tol=1e-9)
    assert math.isclose(one.high or 0, centre + half, rel_tol=1e-9)
    assert share(0, 0).value is None


def test_dawid_skene_finds_the_truth_that_a_majority_of_bad_raters_hides() -> None:
    """Two reliable raters (95 %) against three near-coins that share nothing: EM must beat the majority."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, size=400)
    skill = {"good1": 0.95, "good2": 0.95, "coin1": 0.55, "coin2": 0.55, "coin3": 0.55}
    ratings = [
        {name: int(right) if rng.random() < chance else 1 - int(right) for name, chance in skill.items()}
        for right in truth
    ]
    assert has_enough(ratings)
    estimate = dawid_skene(ratings, 2)
    assert np.allclose(estimate.sum(axis=1), 1)
    found = (estimate.argmax(axis=1) == truth).mean()
    majority = np.mean([(sum(unit.values()) >= 3) == right for unit, right in zip(ratings, truth, strict=True)])
    assert found > 0.95
    assert found > majority + 0.03
    assert not has_enough(ratings[:40])
