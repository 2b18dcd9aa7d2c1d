"""What a stage may train beside low-rank adapters and all weights: the setting ``adapter``."""

from typing import Annotated, Literal, Self, TypeAlias, cast

from pydantic import Field, model_validator

from alignment.recipe.base import AdapterSettings, Count, Lora
from alignment.recipe.stages.spec import StageSettings

Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]


class Ia3(AdapterSettings):
    """Learned factors of the keys, the values and the inner activations of the feed-forward part ((IA)³; Liu et al.
    2022), all 1 at the start: a ten-thousandth of the model's weights. They are merged into the base without a loss."""

    kind: Literal["ia3"]
    """(IA)³: learned factors."""
    targets: Names | None = None
    """Layers whose outputs are scaled, by the end of their names. null: those that make keys and values; where one
    layer makes the queries as well, these too."""
    feedforward: Names | None = None
    """Layers whose inputs are scaled, by the end of their names. null: the second layer of each feed-forward part."""


class SoftPrompt(AdapterSettings):
    """What the kinds of virtual tokens share."""

    tokens: Count = 20
    """Virtual tokens in front of every text. They count towards the model's context. 20: Lester et al. 2021 find little
    gain above it."""

    def virtual_tokens(self) -> int:
        """Tokens that it puts in front of every text."""
        return self.tokens

    def starts_as_base(self) -> bool:
        """Tokens in front of a text change what the model says of it from the start."""
        return False


class PromptTuning(SoftPrompt):
    """Learned embeddings in front of every text (prompt tuning; Lester et al. 2021)."""

    kind: Literal["prompt"]
    """Prompt tuning."""
    text: Text | None = None
    """Words whose embeddings the virtual tokens start as, repeated or cut to their number. null: tokens drawn from the
    vocabulary."""


class PrefixTuning(SoftPrompt):
    """Learned keys and values in front of those of every text, in each layer (prefix tuning; Li and Liang 2021)."""

    kind: Literal["prefix"]
    """Prefix tuning."""
    text: Text | None = None
    """Words whose keys and values the prefix starts as, repeated or cut to its number of tokens (Li and Liang 2021,
    section 7.4). null: tokens drawn from the vocabulary."""


class PTuning(SoftPrompt):
    """Embeddings in front of every text that a small network makes of learned ones (P-tuning; Liu et al. 2021). What it
    makes of them is saved, and a stage on top trains that as prompt tuning does."""

    kind: Literal["p_tuning"]
    """P-tuning: tokens that a network makes."""
    hidden: Count | None = None
    """Width of the network, three layers with ReLU between them. null: that of the model's embeddings."""


class OwnWeights(AdapterSettings):
    """Some of the model's own weights: what a stage leaves is whole weights, as where all are trained."""

    def keeps_base(self) -> bool:
        """The weights that it trains are the base's."""
        return False


class BitFit(OwnWeights):
    """The model's biases alone (BitFit; Ben Zaken et al. 2022). Llamas and many others have none."""

    kind: Literal["bitfit"]
    """BitFit: the biases alone."""


class Layers(OwnWeights):
    """The last layers, or named parts, of the model; all other weights are frozen."""

    kind: Literal["layers"]
    """Layer freezing."""
    last: Count | None = None
    """How many layers at the end are trained, with the norm that follows them. null: none by their number."""
    modules: Names | None = None
    """Parts that are trained, by the end of their names: `layers.3`, `self_attn`, `embed_tokens`. null: none by
    name."""

    @model_validator(mode="after")
    def _trains_something(self) -> Self:
        if self.last is None and self.modules is None:
            raise ValueError("it trains nothing: set last, modules or both")
        return self


Adapter: TypeAlias = Annotated[
    Ia3 | PromptTuning | PrefixTuning | PTuning | BitFit | Layers, Field(discriminator="kind")
]


class AdaptedStage(StageSettings):
    """A stage that trains a model: low-rank adapters, another adapter, or all weights."""

    lora: Lora | None = Lora()
    """The low-rank adapter to train. null: all weights, or what `adapter` says."""
    adapter: Adapter | None = None
    """Another adapter, or some of the weights, in place of `lora`. null: what `lora` says."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.adapter is not None and self.lora is not None:
            if "lora" in self.model_fields_set:
                raise ValueError("it has lora and adapter: leave one of them out")
            self.__dict__["lora"] = None  # its default, where nobody asked for it; settings are frozen from here on
        return self

    @model_validator(mode="after")
    def _keeps_its_start(self) -> Self:
        if self.lora is not None and self.lora.init != "zero" and getattr(self, "weight_decay", 0.0) > 0:
            raise ValueError(
                f"weight_decay shrinks the half of an adapter that lora.init={self.lora.init} freezes: set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _recomputes_no_prefix(self) -> Self:
        if getattr(self, "gradient_checkpointing", False) and not self.can_recompute():
            raise ValueError("gradient_checkpointing computes layers anew without the prefix's keys: set it to false")
        return self

    def adapter_trained(self) -> AdapterSettings | None:
        """The adapter that it trains; None where it trains the model's own weights, all or some of them."""
        found = self.trained_part()
        return None if found is None or not found.keeps_base() else found

    def trained_part(self) -> AdapterSettings | None:
        """What it trains in place of all weights; None: all weights."""
        return cast(AdapterSettings | None, self.adapter or self.lora)

    def can_recompute(self) -> bool:
        """Whether activations may be recomputed: a layer that is computed anew is not given a prefix's keys."""
        return self.adapter is None or self.adapter.label() != "prefix"
