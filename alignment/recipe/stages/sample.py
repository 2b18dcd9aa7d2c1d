"""The settings of the stage that draws responses."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from alignment.recipe.base import BASE, Count, Name
from alignment.recipe.stages.spec import StageSettings, StageSpec
from alignment.records import Sampling


class SampleStage(StageSettings):
    """Draws ``per_prompt`` responses to every training prompt from a policy."""

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.sample",
        makes=("responses",),
        reads={"model": "policy", "reward": "reward_model"},
        data=("prompts",),
        sharing="pieces",
        samples=True,
        encoder_decoder_roles=("model",),
        headline=("responses",),
    )
    kind: Literal["sample"]
    """Responses of a policy."""
    model: Name = BASE
    """The policy that answers: a stage, or `base`."""
    per_prompt: Annotated[int, Field(ge=1, le=64)] = 4
    """Responses to each prompt."""
    sampling: Sampling = Sampling(temperature=1.0, top_p=0.95, max_new_tokens=128)
    """How responses are drawn."""
    best_of: Count = 1
    """Candidates for each response, of which `reward` keeps the best (Stiennon et al. 2020). 1: no choice."""
    reward: Name | None = None
    """The stage of kind `reward` that chooses among candidates."""
    batch_size: Count = 64
    """Responses sampled together."""
    limit: Count | None = None
    """Prompts, taken in the order of their digests: from all parts of the file. null: all."""
    workers: Count | None = None
    """Processes. null: `resources.workers`. Their number does not change the responses."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.best_of > 1) != (self.reward is not None):
            raise ValueError("best_of above 1 needs a reward that chooses, and a reward chooses only among best_of")
        if 1 < self.sampling.beams < self.per_prompt:
            raise ValueError(f"{self.sampling.beams} beams end in no more responses than that: lower per_prompt")
        if self.sampling.beams > 1 and self.best_of > 1:
            raise ValueError("beams are no draws of their own: best_of needs sampling")
        return self

    def answers_per_prompt(self) -> int:
        """Responses that it makes to each prompt."""
        return self.per_prompt

    def sampling_used(self) -> Sampling:
        """How it draws its answers."""
        return self.sampling
