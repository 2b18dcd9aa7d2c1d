import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binomtest, multinomial, norm, spearmanr
from scipy.stats import t as student
from statsmodels.api import GLM, families
from statsmodels.stats.proportion import proportion_confint

from alignment.evaluation import length_model
from alignment.evaluation.win_rate import Games, length_controlled_win_rate, length_controlled_win_rates, win_rate

OUTCOMES = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=60)


def outcomes(wins: int, ties: int, losses: int) -> list[float]:
    return [1.0] * wins + [0.5] * ties + [0.0] * losses


def test_value_counts_ties_half() -> None:
    rate = win_rate(outcomes(3, 2, 1))
    assert (rate.value, rate.n, rate.ties) == (4 / 6, 6, 2)


@pytest.mark.parametrize(("wins", "n"), [(0, 1), (0, 20), (1, 20), (13, 20), (20, 20), (480, 500)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_without_ties_the_interval_is_wilsons(wins: int, n: int, confidence: float) -> None:
    rate = win_rate(outcomes(wins, 0, n - wins), confidence=confidence)
    low, high = proportion_confint(wins, n, alpha=1 - confidence, method="wilson")
    assert rate.low == pytest.approx(low, abs=1e-9)
    assert rate.high == pytest.approx(high, abs=1e-9)
    by_scipy = binomtest(wins, n).proportion_ci(confidence, method="wilson")
    assert rate.low == pytest.approx(by_scipy.low, abs=1e-9)


def test_published_example() -> None:
    """Bentur et al. 2009, as Fagerland, Lydersen and Laake 2014 work it: Tango's interval is (-0.517, -0.026)."""
    rate = win_rate(outcomes(1, 13, 7))
    assert 2 * rate.low - 1 == pytest.approx(-0.517, abs=5e-4)
    assert 2 * rate.high - 1 == pytest.approx(-0.026, abs=5e-4)


@pytest.mark.parametrize(("wins", "ties", "losses"), [(12, 36, 2), (5, 3, 9), (1, 40, 0), (30, 1, 0)])
def test_interval_inverts_the_score_test(wins: int, ties: int, losses: int) -> None:
    """The same interval, with the constrained likelihood maximised by number instead of by formula."""
    n, z = wins + ties + losses, norm.ppf(0.975)

    def score(delta: float) -> float:
        def log_likelihood(loss: float) -> float:
            shares = np.array([loss + delta, 1 - 2 * loss - delta, loss])
            counts = np.array([wins, ties, losses])
            return float((counts[counts > 0] * np.log(np.maximum(shares[counts > 0], 1e-300))).sum())

        bounds = (max(0.0, -delta), (1 - delta) / 2)
        loss = minimize_scalar(
            lambda q: -log_likelihood(q), bounds=bounds, method="bounded", options={"xatol": 1e-12}
        ).x
        return float((wins - losses - n * delta) / math.sqrt(n * (2 * loss + delta - delta**2)))

    estimate = (wins - losses) / n
    rate = win_rate(outcomes(wins, ties, losses))
    assert 2 * rate.low - 1 == pytest.approx(brentq(lambda d: score(d) - z, -0.999, estimate - 1e-4), abs=1e-4)
    assert 2 * rate.high - 1 == pytest.approx(brentq(lambda d: score(d) + z, estimate + 1e-4, 0.9999), abs=1e-4)


def test_edges_keep_an_honest_width() -> None:
    z2 = float(norm.ppf(0.975)) ** 2
    wins, ties = win_rate([1.0] * 20), win_rate([0.5] * 20)
    assert (wins.low, wins.high) == (pytest.approx(20 / (20 + z2)), 1.0)
    # All ties: the score test solves to ±z² / (n + z²) on the difference's scale.
    assert (ties.low, ties.high) == (
        pytest.approx(0.5 - z2 / (20 + z2) / 2),
        pytest.approx(0.5 + z2 / (20 + z2) / 2),
    )


def test_ties_narrow_the_interval() -> None:
    many, none = win_rate(outcomes(10, 80, 10)), win_rate(outcomes(50, 0, 50))
    assert many.high - many.low < (none.high - none.low) / 2


@given(OUTCOMES)
def test_interval_holds_the_value_and_mirrors(values: list[float]) -> None:
    rate, mirrored = win_rate(values), win_rate([1 - value for value in values])
    assert 0 <= rate.low <= rate.value <= rate.high <= 1
    assert rate.low < rate.high
    assert (mirrored.low, mirrored.high) == (pytest.approx(1 - rate.high), pytest.approx(1 - rate.low))


@pytest.mark.parametrize("bad", [[], [0.7], [math.nan], [2.0]])
def test_bad_outcomes_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="outcome"):
        win_rate(bad)


@pytest.mark.parametrize(
    ("n", "shares"),
    [
        (30, (0.5, 0.0, 0.5)),
        (50, (0.6, 0.1, 0.3)),
        (50, (0.35, 0.3, 0.35)),
        (50, (0.2, 0.7, 0.1)),
        (40, (0.8, 0.1, 0.1)),
    ],
)
def test_exact_coverage(n: int, shares: tuple[float, float, float]) -> None:
    """Every result that n comparisons can have, weighted by its probability: no simulation noise."""
    truth, covered = shares[0] + shares[1] / 2, 0.0
    for wins in range(n + 1):
        for ties in range(n + 1 - wins):
            probability = multinomial.pmf([wins, ties, n - wins - ties], n, shares)
            if probability > 1e-7:
                rate = win_rate(outcomes(wins, ties, n - wins - ties))
                covered += probability * (rate.low <= truth <= rate.high)
    assert 0.93 <= covered <= 0.97


@given(OUTCOMES, st.randoms(use_true_random=False))
def test_length_control_mirrors_and_stays_inside(values: list[float], random: object) -> None:
    rng = np.random.default_rng(random.randint(0, 2**31))  # type: ignore[attr-defined]
    left, right = rng.integers(1, 200, (2, len(values))).tolist()
    controlled = length_controlled_win_rate(values, left, right)
    assert 0 <= controlled <= 1
    mirrored = length_controlled_win_rate([1 - value for value in values], right, left)
    assert mirrored == pytest.approx(1 - controlled, abs=1e-6)


def test_length_control_at_equal_lengths_is_the_win_rate() -> None:
    assert length_controlled_win_rate(outcomes(6, 1, 3), [7] * 10, [7] * 10) == 0.65


def test_length_control_matches_statsmodels_without_a_prior() -> None:
    rng = np.random.default_rng(1)
    d = rng.normal(20, 50, size=20_000)
    wins = (rng.random(d.size) < 1 / (1 + np.exp(-(0.4 + 1.5 * np.tanh(d / d.std()))))).astype(float)
    fit = GLM(wins, np.stack([np.ones_like(d), np.tanh(d / d.std())], axis=1), family=families.Binomial()).fit()
    assert length_model.fit(wins, np.tanh(d / d.std()), 0.0) == pytest.approx(tuple(fit.params), abs=1e-6)
    controlled = length_controlled_win_rate(wins.tolist(), (d + 100).tolist(), [100.0] * d.size)
    assert controlled == pytest.approx(1 / (1 + math.exp(-0.4)), abs=0.02)
    assert wins.mean() > controlled + 0.03  # what length alone had won


def test_length_control_takes_no_side_when_length_explains_everything() -> None:
    """The longer answer always wins, as often on the left as on the right: separation, and a finite fit at 1/2."""
    left, right = [30] * 20 + [10] * 20, [10] * 20 + [30] * 20
    assert length_controlled_win_rate(outcomes(20, 0, 20), left, right) == pytest.approx(0.5)


def test_length_control_when_one_side_always_wins() -> None:
    assert length_controlled_win_rate([1.0] * 5, [1, 2, 3, 4, 5], [5, 5, 5, 5, 5]) == 1.0


def test_length_control_refuses_unequal_numbers() -> None:
    with pytest.raises(ValueError, match="as many lengths"):
        length_controlled_win_rate([1.0, 0.0], [1], [2])
    with pytest.raises(ValueError, match="finite"):
        length_controlled_win_rate([1.0, 0.0], [1, math.inf], [2, 2])


def test_length_control_refuses_what_is_no_preference() -> None:
    with pytest.raises(ValueError, match="between 0"):
        length_controlled_win_rate([1.0, 1.5], [1, 2], [2, 1])
    with pytest.raises(ValueError, match="2 outcomes on 1 prompts"):
        length_controlled_win_rates({"a": Games([1.0, 0.5], [1, 2], [2, 1], ["p"])})


@given(OUTCOMES, st.randoms(use_true_random=False))
def test_the_length_controlled_interval_holds_its_value_and_mirrors(values: list[float], random: object) -> None:
    rng = np.random.default_rng(random.randint(0, 2**31))  # type: ignore[attr-defined]
    left, right = rng.integers(1, 200, (2, len(values))).tolist()
    one = length_controlled_win_rate(values, left, right)
    other = length_controlled_win_rate([1 - value for value in values], right, left)
    assert one.low is not None
    assert one.high is not None
    assert 0 <= one.low <= one <= one.high <= 1
    assert (other.low, other.high) == pytest.approx((1 - one.high, 1 - one.low), abs=1e-6)


def test_a_profile_interval_is_all_that_the_likelihood_ratio_test_allows() -> None:
    """By statsmodels: the quality is an offset, the effect fitted under it."""
    rng = np.random.default_rng(3)
    x = np.tanh(rng.normal(0.5, 1, 200))
    wins = (rng.random(200) < 1 / (1 + np.exp(-(0.5 + x)))).astype(float)
    low, high = length_model.profile_interval(wins, x, confidence=0.95)

    def deviance(quality: float) -> float:
        offset = np.full(200, quality)
        return float(GLM(wins, x[:, None], family=families.Binomial(), offset=offset).fit().deviance)

    whole = GLM(wins, np.stack([np.ones(200), x], axis=1), family=families.Binomial()).fit()
    scale = float(whole.pearson_chi2) / 198
    for end in (low, high):
        excess = (deviance(float(np.log(end / (1 - end)))) - whole.deviance) / scale
        assert excess == pytest.approx(student.ppf(0.975, 198) ** 2, rel=0.06)  # the weak prior, the two games


def test_players_without_a_shared_prompt_get_their_own_figure() -> None:
    games = {
        "apart": Games([1.0, 0.0, 1.0], [5, 9, 4], [7, 7, 7], ["x", "y", "z"]),
        "always": Games([1.0, 1.0], [5, 9], [7, 7], ["p", "q"]),
        "sometimes": Games([1.0, 0.0], [5, 9], [7, 7], ["p", "q"]),
    }
    found = length_controlled_win_rates(games)
    for player, one in games.items():
        own = length_controlled_win_rate(*one[:3])
        assert (found[player], found[player].low, found[player].high) == (own, own.low, own.high)


def test_a_prompt_that_is_hard_for_all_is_no_effect_of_length() -> None:
    """Answers are short where the prompt is hard: alone, each player seems to lose by length what the prompt costs."""
    rng = np.random.default_rng(5)
    hard = rng.normal(0, 1, 400)
    effects = {}
    for player in map(str, range(6)):
        lengths = 100 - 60 - 20 * hard + rng.normal(0, 30, 400)
        wins = (rng.random(400) < 1 / (1 + np.exp(0.5 + hard))).astype(float)
        effects[player] = Games(wins.tolist(), lengths.tolist(), [100.0] * 400, range(400))
    truth = float(np.mean(1 / (1 + np.exp(0.5 + rng.normal(0, 1, 100_000)))))
    alone = np.mean([length_controlled_win_rate(*one[:3]) for one in effects.values()])
    together = np.mean(list(length_controlled_win_rates(effects).values()))
    assert abs(together - truth) < 0.85 * abs(alone - truth)


@pytest.fixture(scope="module")
def published(real_data: Path) -> dict[str, Any]:
    """AlpacaEval 2's verdicts, by model."""
    path = real_data / "alpaca_eval_verdicts.json.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return dict(json.loads(gzip.decompress(path.read_bytes()))["models"])


@pytest.mark.parametrize("together", [False, True])
def test_length_control_finds_what_alpaca_eval_published(published: dict[str, Any], together: bool) -> None:
    """Each model by itself, and all with the difficulty of their prompts. A weak prior alone is off by 7 points on
    average, and ranks worse (Spearman 0.94) than the plain win rate does (0.957)."""
    games = {}
    for model, one in published.items():
        prompt, preference, mine, theirs = zip(*one["rows"], strict=True)
        games[model] = Games(preference, mine, theirs, prompt)
    found = (
        length_controlled_win_rates(games)
        if together
        else {model: length_controlled_win_rate(*one[:3]) for model, one in games.items()}
    )
    ours = np.array([100 * found[model] for model in published])
    theirs = np.array([one["length_controlled_winrate"] for one in published.values()])
    assert np.abs(ours - theirs).mean() <= 2.0
    assert spearmanr(ours, theirs).statistic >= 0.98


def test_comparisons_that_hang_together_count_as_fewer() -> None:
    """Every comparison five times over says as much as once, with Student's t for as many clusters."""
    values = outcomes(60, 10, 30)
    repeated, clusters = [value for value in values for _ in range(5)], [i for i in range(100) for _ in range(5)]
    alone, together, blind = win_rate(values), win_rate(repeated, clusters=clusters), win_rate(repeated)
    assert together.value == alone.value
    wider = float(student.ppf(0.975, 99) / norm.ppf(0.975))
    assert together.high - together.low == pytest.approx((alone.high - alone.low) * wider, rel=0.01)
    assert blind.high - blind.low < 0.5 * (alone.high - alone.low)
    assert win_rate(values, clusters=range(100)) == alone
    certain = win_rate([1.0] * 50, clusters=[i // 10 for i in range(50)])  # five prompts, and all right: five of five
    assert (certain.low, certain.high) == (pytest.approx(win_rate([1.0] * 5).low), 1.0)
    with pytest.raises(ValueError, match="as many clusters"):
        win_rate([1.0], clusters=[])
