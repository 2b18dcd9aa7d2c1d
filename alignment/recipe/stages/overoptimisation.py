"""The settings of the over-optimisation experiment."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from alignment.recipe.base import Count, Name, Part
from alignment.recipe.raters import SimulatedRaters
from alignment.recipe.stages.spec import StageSettings, StageSpec


class OveroptimisationStage(StageSettings):
    """The gold-reward experiment (Gao et al. 2022): true and proxy reward against the square root of the KL.

    The snapshots of each policy (``snapshot_every``), and its end, answer held-out prompts at temperature 1. The proxy
    is the reward model that they were trained on; the true reward is the raters' own score of an answer, by their
    rubric. Best-of-n needs no training: it is computed for n = 1, 2, 4 … from ``best_of`` answers of ``model``.
    """

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.overoptimisation",
        makes=("experiment",),
        reads={"model": "policy", "policies": "policy", "reward": "reward_model"},
        data=("prompts",),
        headline=("points",),
    )
    kind: Literal["overoptimisation"]
    policies: tuple[Name, ...] = Field(min_length=1)
    model: Name  # what they all started from, and the KL is measured from
    reward: Name
    raters: SimulatedRaters
    best_of: Annotated[int, Field(ge=2, le=4096)] = 64
    per_prompt: Count = 1  # answers of each snapshot to each prompt
    max_new_tokens: Count = 64
    batch_size: Count = 64
    limit: Count | None = None  # held-out prompts
    part: Part = "all"

    def named_files(self) -> dict[str, str]:
        """The rubric of the true reward."""
        return {"rubric": self.raters.rubric}

    def asks_held_out(self) -> bool:
        """Whether it asks the held-out part of ``data.prompts``."""
        return True

    def evaluates(self) -> bool:
        """Whether it measures policies, on prompts that none was trained on."""
        return True
