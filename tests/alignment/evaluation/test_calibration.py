import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from statsmodels.stats.proportion import proportion_confint

from alignment.evaluation.calibration import expected_calibration_error, pair_accuracy, pair_predictions, reliability


def test_pair_accuracy_with_wilsons_interval() -> None:
    accuracy = pair_accuracy([2.0, 1.0, 3.0, 0.0], [1.0, 2.0, 0.0, -1.0])
    low, high = proportion_confint(3, 4, method="wilson")
    assert (accuracy.value, accuracy.n, accuracy.ties) == (0.75, 4, 0)
    assert (accuracy.low, accuracy.high) == (pytest.approx(low), pytest.approx(high))


def test_equal_scores_count_half() -> None:
    accuracy = pair_accuracy([1.0, 1.0], [1.0, 0.0])
    assert (accuracy.value, accuracy.ties) == (0.75, 1)


def test_ece_by_hand() -> None:
    # (0, 0.5]: mean 0.3, happened 1 of 2. (0.5, 1]: mean 0.9, happened 1 of 2. ECE = (0.2 + 0.4) / 2.
    probabilities, outcomes = [0.2, 0.4, 0.8, 1.0], [0, 1, 1, 0]
    assert expected_calibration_error(probabilities, outcomes, bins=2) == pytest.approx(0.3)
    low, high = reliability(probabilities, outcomes, bins=2)
    assert low == {"low": 0, "high": 0.5, "n": 2, "confidence": pytest.approx(0.3), "accuracy": 0.5}
    assert (high["n"], high["confidence"]) == (2, pytest.approx(0.9))


def test_edges_fall_into_the_lower_bin_and_zero_into_the_first() -> None:
    table = reliability([0.0, 0.5, 1.0], [0, 0, 1], bins=2)
    assert [row["n"] for row in table] == [2, 1]


def test_reliability_matches_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(500)
    y = (rng.random(500) < p**2).astype(float)
    happened, said = calibration_curve(y, p, n_bins=10)
    table = reliability(p.tolist(), y.tolist(), bins=10)
    assert [row["accuracy"] for row in table] == pytest.approx(happened.tolist())
    assert [row["confidence"] for row in table] == pytest.approx(said.tolist())


def test_calibrated_probabilities_have_little_error_and_overconfident_ones_much() -> None:
    rng = np.random.default_rng(1)
    margins = rng.normal(0, 2, 50_000)
    won = rng.random(margins.size) < 1 / (1 + np.exp(-margins))
    chosen, rejected = np.where(won, margins, 0.0), np.where(won, 0.0, margins)
    honest = pair_predictions(chosen.tolist(), rejected.tolist())
    loud = pair_predictions((4 * chosen).tolist(), (4 * rejected).tolist())
    assert expected_calibration_error(*(side.tolist() for side in honest)) < 0.01
    assert expected_calibration_error(*(side.tolist() for side in loud)) > 0.1


@pytest.mark.parametrize(
    ("probabilities", "outcomes", "bins"),
    [([], [], 10), ([0.5], [1, 0], 10), ([1.5], [1], 10), ([0.5], [2], 10), ([float("nan")], [1], 10), ([0.5], [1], 0)],
)
def test_bad_predictions_are_refused(probabilities: list[float], outcomes: list[float], bins: int) -> None:
    with pytest.raises(ValueError, match=r"probabilities|bin"):
        reliability(probabilities, outcomes, bins)


def test_bad_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        pair_accuracy([float("nan")], [0.0])
    with pytest.raises(ValueError, match="as many"):
        pair_accuracy([1.0], [])
