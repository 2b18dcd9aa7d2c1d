"""Win rates, read back from an evaluation's metrics."""

from collections.abc import Mapping
from typing import NamedTuple

JUDGES = {
    "rubric": "simulated raters with the written rubric",
    "reward": "the run's own reward model",
    "judge": "an AI judge",
}


class CandidateWinRate(NamedTuple):
    """A candidate's win rate against one opponent by one judge: shares in 0 … 1, with the interval's two ends."""

    opponent: str
    judge: str
    value: float
    low: float
    high: float
    length_controlled: float | None
    length_controlled_low: float | None = None
    length_controlled_high: float | None = None
    calibrated: bool = True  # False: an AI judge that nobody's votes were compared with

    @property
    def judged_by(self) -> str:
        """The judge in words; simulated raters are called simulated, and an AI judge without votes uncalibrated."""
        return JUDGES.get(self.judge, self.judge) + ("" if self.calibrated else ", uncalibrated")


def win_rates(metrics: Mapping[str, float]) -> list[CandidateWinRate]:
    """Every win rate among an evaluation's metrics (``win_rate.<opponent>.<judge>.value`` and its parts), in order."""
    found = []
    for name in metrics:
        if not (name.startswith("win_rate.") and name.endswith(".value")):
            continue
        stem = name.removesuffix(".value")
        opponent, _, judge = stem.removeprefix("win_rate.").rpartition(".")
        if opponent and f"{stem}.low" in metrics and f"{stem}.high" in metrics:
            found.append(
                CandidateWinRate(
                    opponent, judge, metrics[name], metrics[f"{stem}.low"], metrics[f"{stem}.high"],
                    length_controlled=metrics.get(f"{stem}.length_controlled"),
                    length_controlled_low=metrics.get(f"{stem}.length_controlled.low"),
                    length_controlled_high=metrics.get(f"{stem}.length_controlled.high"),
                    calibrated=judge != "judge" or bool(metrics.get("judge.calibrated")),
                )
            )  # fmt: skip
    return found
