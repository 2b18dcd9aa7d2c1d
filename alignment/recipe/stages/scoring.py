"""What the trainers of models with one score share: what they start from, a policy or an encoder of their own."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from alignment.recipe.base import BASE, Settings
from alignment.recipe.stages.training import PreferenceTraining

ENCODER = "encoder"  # under which name a stage is given its folder


class EncoderSettings(Settings):
    """An encoder such as BERT, RoBERTa or ModernBERT: a folder of yours, or one from a hub."""

    folder: str | None = None
    """The encoder's folder, relative to the recipe. One of `folder` and `hub` is required."""
    hub: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")] | None = None
    """The encoder's name on a hub."""
    revision: str | None = None
    """Revision of the hub's encoder. Pin it: else the model can change under the recipe."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.folder is None) == (self.hub is None):
            raise ValueError("name one of folder and hub: which encoder")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision is of a hub's encoder: name one with hub, or remove it")
        return self


class ScoreModelStage(PreferenceTraining):
    """What the trainers of models with one score share, which are saved as whole weights."""

    encoder: EncoderSettings | None = None
    """An encoder (BERT, RoBERTa, ModernBERT) to start from in place of `model`, with its own tokenizer, which reads a
    conversation message by message. `max_length` is then at most what it can read, and a longer prompt is cut from the
    left. null: `model`."""

    def encoder_used(self) -> EncoderSettings | None:
        """The encoder that it starts from in place of a policy."""
        return self.encoder

    def inputs(self) -> dict[str, tuple[str, ...]]:
        """The stages that it reads: no policy where it starts from an encoder."""
        named = super().inputs()
        return named if self.encoder is None else {role: read for role, read in named.items() if role != "model"}

    def model_folders(self) -> dict[str, str]:
        """The folder of its encoder, where it names one."""
        return {} if self.encoder is None or self.encoder.folder is None else {ENCODER: self.encoder.folder}

    def reads_base(self) -> bool:
        """Whether it is given the base: an encoder stands on none."""
        return self.encoder is None

    @model_validator(mode="after")
    def _starts_once(self) -> Self:
        if self.encoder is None:
            return self
        model = getattr(self, "model", BASE)
        if model != BASE:
            raise ValueError(f"model={model} and encoder: it starts from one of them, leave the other out")
        part = self.trained_part()
        if part is not None and part.label() == "ia3":
            raise ValueError("adapter=ia3 is for decoders: with an encoder set lora, bitfit or layers")
        return self

    @model_validator(mode="after")
    def _is_merged(self) -> Self:
        part = self.trained_part()
        if part is not None and part.virtual_tokens():
            raise ValueError(
                f"adapter={part.label()} cannot be merged into weights, and a {self.kind} is saved as whole weights: "
                "set lora, ia3, bitfit or layers"
            )
        return self
