"""Scores in units of their own spread, so that one set of defaults fits rewards of any offset and scale.

The mean and deviation are those of all answers scored so far, the newest included, as in the reward normalisation of
Zheng et al. 2023 ("Secrets of RLHF in Large Language Models Part I: PPO"). Statistics of one step alone
would hide from the policy that its answers got better, and a first step in which all answers fail would set the scale
for the whole run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

ROUNDING = 1e-6  # a deviation below this share of the mean is float32's rounding of equal scores


@dataclass(slots=True)
class ScoreScale:
    """The running mean and deviation of scores; ``squares`` is the sum of squared differences from the mean."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, scores: Sequence[float] | torch.Tensor) -> None:
        """Takes in a step's scores (N,): the parallel formula of Chan, Golub and LeVeque (1979), in float64."""
        new = torch.as_tensor(scores, dtype=torch.float64)
        total, difference = self.count + len(new), float(new.mean()) - self.mean
        self.squares += float((new - new.mean()).square().sum()) + difference**2 * self.count * len(new) / total
        self.mean += difference * len(new) / total
        self.count = total

    @property
    def deviation(self) -> float:
        """The sample's standard deviation; 1 as long as all scores are equal, which says nothing about the spread."""
        deviation = math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
        return deviation if deviation > ROUNDING * abs(self.mean) else 1.0

    def normalised(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores (N,) float32 in deviations from the mean; differences are taken in float64."""
        return ((scores.double() - self.mean) / self.deviation).float()
