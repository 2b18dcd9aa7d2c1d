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
        run="alignment.stages.experiments.overoptimisation",
        makes=("experiment",),
        reads={"model": "policy", "policies": "policy", "reward": "reward_model"},
        data=("prompts",),
        headline=("points",),
    )
    kind: Literal["overoptimisation"]
    """The gold-reward experiment."""
    policies: tuple[Name, ...] = Field(min_length=1)
    """Stages whose snapshots are measured (`snapshot_every`)."""
    model: Name
    """The policy that they started from, and that the KL divergence is measured from."""
    reward: Name
    """The stage of kind `reward` that they were trained on: the proxy."""
    raters: SimulatedRaters
    """The raters whose rubric is the true reward."""
    best_of: Annotated[int, Field(ge=2, le=4096)] = 64
    """Answers per prompt from which best-of-n is computed, for n = 1, 2, 4 …."""
    per_prompt: Count = 1
    """Answers of each snapshot to each prompt."""
    max_new_tokens: Count = 64
    """Tokens at which an answer is cut off, EOS included."""
    batch_size: Count = 64
    """Answers sampled together."""
    limit: Count | None = None
    """Held-out prompts. null: all."""
    part: Part = "all"
    """The part of the held-out prompts that is asked."""

    def named_files(self) -> dict[str, str]:
        """The rubric of the true reward."""
        return {"rubric": self.raters.rubric}

    def asks_held_out(self) -> bool:
        """Whether it asks held-out prompts of the recipe's data."""
        return True

    def evaluates(self) -> bool:
        """Whether it measures policies, on prompts that none was trained on."""
        return True
