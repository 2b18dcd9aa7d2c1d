"""Sweeps as they might be: variants by prompts by seeds, with all that scatters, drawn from outside."""

import numpy as np
from numpy.typing import NDArray

Values = dict[str, NDArray[np.float64]]


def sweep(
    rng: np.random.Generator,
    strengths: list[float],
    *,
    prompts: int,
    seeds: int,
    seed_scatter: float,
    prompt_scatter: float = 1.0,
) -> Values:
    """Outcomes 0, 0.5 or 1 of each variant, (prompts, seeds).

    A variant's latent advantage on a prompt is its strength, the prompt's easiness (the same for all), what suits the
    variant on this prompt, the luck of the seed (one draw for all prompts), and noise. Above 0.3 it wins, below -0.3 it
    loses.
    """
    easiness = rng.normal(0, prompt_scatter, (prompts, 1))
    found = {}
    for place, strength in enumerate(strengths):
        suits = rng.normal(0, 0.5, (prompts, 1))
        luck = rng.normal(0, seed_scatter, (1, seeds))
        latent = strength + easiness + suits + luck + rng.normal(0, 0.7, (prompts, seeds))
        found[f"v{place}"] = np.where(latent > 0.3, 1.0, np.where(latent < -0.3, 0.0, 0.5))
    return found


def true_mean(strength: float, *, seed_scatter: float, prompt_scatter: float = 1.0) -> float:
    """A variant's mean outcome over all prompts and seeds: the latent advantage is normal."""
    from scipy.stats import norm

    scale = float(np.sqrt(prompt_scatter**2 + 0.5**2 + seed_scatter**2 + 0.7**2))
    wins, loses = norm.sf((0.3 - strength) / scale), norm.cdf((-0.3 - strength) / scale)
    return float(wins + (1 - wins - loses) / 2)
