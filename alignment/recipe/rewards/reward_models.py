"""Rewards that reward models give: one model's score, and the lower bound of several."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from alignment.recipe.base import Count, Name, NotNegative
from alignment.recipe.judges import ModelServer
from alignment.recipe.rewards.settings import RewardSettings


class ModelReward(RewardSettings):
    """The score of a reward model: a stage's, which knows the policy's chat template or is an encoder, or another that
    reads conversations by its own template and tokenizer: of a folder, a hub, or behind a server."""

    kind: Literal["model"]
    """The score of a reward model."""
    model: Name | None = None
    """A stage of kind `reward`. One of `model`, `folder`, `hub` and `endpoint` is required."""
    folder: str | None = None
    """A reward model's folder (sequence classification with one output and a chat template), relative to the recipe."""
    hub: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")] | None = None
    """The name of such a model on a hub."""
    revision: str | None = None
    """Revision of the hub's model. Pin it: else the model can change under the recipe."""
    endpoint: ModelServer | None = None
    """A server of such a model, in vLLM's protocol: `POST <url>/pooling` with the conversation's `messages` gives
    `{"data": [{"data": [score]}]}`."""
    batch_size: Count = 32
    """Answers in one forward pass."""

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if sum(one is not None for one in (self.model, self.folder, self.hub, self.endpoint)) != 1:
            raise ValueError("name one of model, folder, hub and endpoint: which reward model")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision is of a hub's model: name one with hub, or remove it")
        return self

    def held_here(self) -> bool:
        """Whether its weights are held where the stage runs."""
        return self.endpoint is None


class EnsembleReward(RewardSettings):
    """The lower bound of several reward models' scores: their mean less ``deviations`` of their standard deviations.

    Where the models disagree they have seen too little, and a policy that is rewarded there learns their mistakes
    (Coste et al. 2023). They have to differ: give the stages that train them a ``seed`` each.
    """

    kind: Literal["ensemble"]
    """The lower bound of several reward models' scores."""
    models: Annotated[tuple[Name, ...], Field(min_length=2)]
    """Stages of kind `reward`, which know the policy's chat template or are encoders."""
    deviations: NotNegative = 1.0
    """How many standard deviations k of the models' scores (the sample's, divided by n - 1) are taken off their mean.
    0: the mean."""
    batch_size: Count = 32
    """Answers in one forward pass."""

    @field_validator("models")
    @classmethod
    def _each_once(cls, models: tuple[Name, ...]) -> tuple[Name, ...]:
        for name in models:
            if models.count(name) > 1:
                raise ValueError(f"{name} stands twice; an ensemble is of different models")
        return models
