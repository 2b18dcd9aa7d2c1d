"""The temperature of a reward model: on margins whose law is known."""

import numpy as np
import pytest

from alignment.evaluation.held_out_pairs import reward_figures
from alignment.records import Message, PreferencePair


def simulated(count: int, temperature: float, seed: int) -> tuple[list[PreferencePair], list[float]]:
    """Pairs whose margins are ``temperature`` times the log-odds by which their chosen answers were chosen."""
    generator = np.random.default_rng(seed)
    odds = generator.normal(size=count)
    margins = np.where(generator.random(count) < 1 / (1 + np.exp(-odds)), odds, -odds) * temperature
    prompt = (Message(role="user", content="?"),)
    pairs = [
        PreferencePair(id=f"p{n}", prompt_id=f"q{n}", prompt=prompt, chosen=f"a{n}", rejected=f"b{n}")
        for n in range(count)
    ]
    return pairs, margins.tolist()


@pytest.mark.parametrize("temperature", [0.3, 5.0])
def test_a_temperature_makes_margins_log_odds(temperature: float) -> None:
    pairs, margins = simulated(4000, temperature, seed=0)
    zeros = [0.0] * len(margins)
    before = reward_figures(pairs, margins, zeros).metrics
    after = reward_figures(pairs, margins, zeros, calibrate=True).metrics
    assert after["temperature"] == pytest.approx(temperature, rel=0.1)
    assert before["ece"] > 0.1
    assert after["ece"] < 0.02
    assert after["accuracy"] == before["accuracy"]


def test_calibration_is_not_measured_on_what_it_was_fitted_on() -> None:
    """Of pure noise the best temperature is infinite; fitted and measured on the same pairs, ECE would flatter."""
    errors = []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        pairs, _ = simulated(40, 1, seed=seed)
        margins = generator.normal(size=40).tolist()
        errors.append(reward_figures(pairs, margins, [0.0] * 40, calibrate=True).metrics["ece"])
    assert np.mean(errors) > 0.05
