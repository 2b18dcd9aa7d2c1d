"""The settings of a tournament between policies."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from alignment.recipe.base import Count, Name, Part
from alignment.recipe.judges import JUDGE_READS, JudgeSettings, check_calibration
from alignment.recipe.raters import SimulatedRaters
from alignment.recipe.stages.spec import StageSettings, StageSpec
from alignment.records import Sampling


class TournamentStage(StageSettings):
    """Every policy against every other on held-out prompts; its output is the best of them, a model like any other.

    The best is the one with the highest win rate against ``model``, from which all started. Best-of-n from ``model``
    plays along as the baseline that needs no training; it is no model, so it cannot be the output.
    """

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.experiments.tournament",
        makes=("policy",),
        reads={"model": "policy", "policies": "policy", "reward": "reward_model", **JUDGE_READS},
        data=("prompts",),
        sharing="pieces",
        headline=("players",),
    )
    kind: Literal["tournament"]
    """A tournament between policies."""
    policies: tuple[Name, ...] = Field(min_length=2)
    """The players: stages that make policies."""
    model: Name
    """The policy from which all started, which plays along."""
    raters: SimulatedRaters | None = None
    """Simulated raters that compare the answers by a rubric. Raters or a judge are required."""
    judge: JudgeSettings | None = None
    """An AI judge that compares the answers, each pair in both orders."""
    calibrated_by: Name | None = None
    """A stage of kind `judge` with the very same judge. null: its figures are called uncalibrated."""
    reward: Name | None = None
    """The stage of kind `reward` that chooses among the answers of best-of-n."""
    best_of: Count = 1
    """Candidates for each answer of best-of-n. 1: best-of-n does not play."""
    sampling: Sampling = Sampling(temperature=0.0, max_new_tokens=128)
    """How the policies' answers are drawn."""
    best_of_temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Sampling temperature of the candidates of best-of-n."""
    kl_prompts: Count = 16
    """Prompts for the KL divergence from `model`, which needs samples at temperature 1 of its own."""
    batch_size: Count = 64
    """Answers sampled together."""
    limit: Count | None = None
    """Held-out prompts. null: all."""
    part: Part = "first half"
    """The part of the held-out prompts that is asked; the gate's evaluation then takes the other one."""
    workers: Count | None = None
    """Processes. null: `resources.workers`. Their number does not change the result."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.best_of > 1) != (self.reward is not None):
            raise ValueError("best_of above 1 needs a reward that chooses, and a reward chooses only among best_of")
        if (self.raters is None) == (self.judge is None):
            raise ValueError("name raters or a judge: who compares")
        check_calibration(self.judge, self.calibrated_by)
        return self

    def named_files(self) -> dict[str, str]:
        """The rubric, where raters follow one."""
        return {} if self.raters is None else {"rubric": self.raters.rubric}

    def judge_used(self) -> JudgeSettings | None:
        """The judge that compares."""
        return self.judge

    def calibration_used(self) -> str | None:
        """The stage that says how far its judge can be trusted."""
        return self.calibrated_by

    def asks_held_out(self) -> bool:
        """Whether it asks held-out prompts of the recipe's data."""
        return True

    def evaluates(self) -> bool:
        """Whether it measures policies, on prompts that none was trained on."""
        return True

    def sampling_used(self) -> Sampling:
        """How it draws its answers."""
        return self.sampling


OTHER_HALF: Mapping[Part, Part] = {"first half": "second half", "second half": "first half"}


def chosen_by(stages: Mapping[str, StageSettings], policy: str) -> dict[str, TournamentStage]:
    """The tournaments that chose the policy, or one that it was trained from, by name."""
    found: dict[str, TournamentStage] = {}
    waiting, seen = [policy], set()
    while waiting:
        name = waiting.pop()
        stage = stages.get(name)
        if stage is None or name in seen:
            continue
        seen.add(name)
        if isinstance(stage, TournamentStage):
            found[name] = stage
        for role, sources in stage.inputs().items():
            if stage.spec.reads[role] == "policy":
                waiting += sources
    return found
