"""The settings of supervised fine-tuning."""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from alignment.recipe.base import BASE, Name, NotNegative, Positive
from alignment.recipe.stages.spec import StageSpec
from alignment.recipe.stages.training import QuantisationAware, StudentTraining


class SftStage(StudentTraining, QuantisationAware):
    """Supervised fine-tuning, loss on the assistant's tokens only."""

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.sft",
        makes=("policy",),
        reads={"model": "policy", "demonstrations": "demonstrations"},
        data=("demonstrations",),
        sharing="batches",
        encoder_decoder_roles=("model",),
        headline=("loss",),
    )
    kind: Literal["sft"]
    """Supervised fine-tuning."""
    model: Name = BASE
    """The model to train: a stage, or `base`."""
    demonstrations: Name | None = None
    """A stage that makes demonstrations. null: the file `data.demonstrations`."""
    learning_rate: Positive = 2e-4
    """Peak learning rate. 2e-4, for LoRA: ten times full fine-tuning's 2e-5 (Dettmers et al. 2023, table 9)."""
    epochs: Positive = 3.0
    """Passes over the demonstrations. 3: Ouyang et al. 2022 and Zhou et al. 2023 train several epochs on little
    data."""
    packing: bool = False
    """Put several conversations into one row."""
    router_loss: NotNegative | None = None
    """Coefficient of the loss that has a mixture of experts use its experts alike (Fedus et al. 2022). 0: none. null:
    the one that the model's configuration names, if any."""

    @model_validator(mode="after")
    def _packs_no_virtual_tokens(self) -> Self:
        part = self.trained_part()
        if self.packing and part is not None and part.virtual_tokens():
            raise ValueError(
                "packing puts several conversations into one row, and virtual tokens stand before each: set it to false"
            )
        return self

    def packs_rows(self) -> bool:
        """Whether it puts several conversations into one row."""
        return self.packing

    def router_loss_used(self) -> float | None:
        """Coefficient of the routers' loss, where it is set."""
        return self.router_loss

    def trained_length(self) -> int:
        """Tokens at which the conversations that it trains on are cut, or left out."""
        return self.max_length
