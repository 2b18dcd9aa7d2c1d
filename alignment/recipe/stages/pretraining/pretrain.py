"""The settings of pretraining: a language model from nothing, or one that reads on."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from alignment.recipe.base import Count, Fraction, Name, NotNegative, Positive, Settings
from alignment.recipe.stages.spec import StageSpec
from alignment.recipe.stages.training import Optimisation

ROUND = 32  # the inner width is a multiple of it


class Architecture(Settings):
    """A decoder of Llama's kind (Touvron et al. 2023: RMSNorm, rotary positions, SwiGLU), or of Mixtral's (Jiang et al.
    2024) where it has experts."""

    layers: Count
    """Layers, each of attention and a feed-forward part."""
    width: Count
    """Width of the hidden states, which the heads share."""
    heads: Count
    """Heads of attention in each layer."""
    key_value_heads: Count | None = None
    """Heads of keys and values, which groups of query heads share (Ainslie et al. 2023). null: as many as `heads`."""
    inner: Count | None = None
    """Width of the feed-forward part, or of each expert. null: 8/3 of `width` (Shazeer 2020), rounded up to a multiple
    of 32."""
    experts: Annotated[int, Field(ge=2)] | None = None
    """Feed-forward parts of each layer, of which a router chooses some for each token. null: one, and no router."""
    experts_per_token: Count = 2
    """Experts that a token meets. 2: Jiang et al. 2024."""
    tied: bool = True
    """Whether the head is the embedding's weight (Press and Wolf 2017)."""
    rope_theta: Positive = 10_000.0
    """Base of the rotary positions' wavelengths (Su et al. 2021)."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"{self.heads} heads of an even width do not make a width of {self.width}")
        if self.key_value_heads is not None and self.heads % self.key_value_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.key_value_heads} heads of keys and values evenly")
        if self.experts is not None and self.experts_per_token > self.experts:
            raise ValueError(f"a token cannot meet {self.experts_per_token} of {self.experts} experts")
        return self

    def inner_width(self) -> int:
        """Width of the feed-forward part."""
        return self.inner or -(-8 * self.width // (3 * ROUND)) * ROUND


class PretrainStage(Optimisation):
    """Trains a language model on a corpus: from nothing, or a whole model further. Documents are packed into rows of
    ``max_length`` tokens without padding, and ``base`` is this model from then on."""

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.pretraining.pretrain",
        makes=("policy",),
        reads={"model": "policy", "tokenizer": "tokenizer"},
        data=("corpus",),
        sharing="batches",
        headline=("perplexity", "loss"),
    )
    kind: Literal["pretrain"]
    """Pretraining on the documents of `data.corpus`."""
    model: Name | None = None
    """A whole model that reads on: a stage, or `base`. null: a new one, of `architecture` and `tokenizer`."""
    tokenizer: Name | None = None
    """The stage of kind `tokenizer` whose tokenizer a new model has."""
    architecture: Architecture | None = None
    """The shape of a new model."""
    isolated: bool = False
    """Whether a document sees nothing of those before it in its row: positions begin anew with it, and its first token
    is not learned. false: it sees them, and EOS stands between (Brown et al. 2020), which is faster."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Share of the documents that are not trained on, and on which the perplexity is measured; chosen by their
    digests."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` (Jordan et al. 2024) trains the matrices of the layers, and AdamW the rest: embeddings, head and norms.
    Its steps are scaled to the size of AdamW's (Liu et al. 2025), so that one learning rate and weight decay do for
    both."""
    epochs: Positive = 1.0
    """Passes over the corpus."""
    learning_rate: Positive = 3e-4
    """Peak learning rate. 3e-4: Touvron et al. 2023, for 7e9 parameters; small models take up to ten times that."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    warmup: Fraction = 0.02
    """Share of the optimizer steps in which the learning rate rises linearly."""
    weight_decay: NotNegative = 0.1
    """Decoupled weight decay (Loshchilov and Hutter 2019) of all matrices. 0.1: Brown et al. 2020."""
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """AdamW's decay of the second moment. 0.95: Brown et al. 2020."""
    checkpoint_every: Count = 100
    """Optimizer steps between two checkpoints."""
    evaluate_every: Count | None = None
    """Optimizer steps between two measurements of the held-out perplexity, which is measured at the end in any case.
    null: only there."""
    router_loss: NotNegative | None = None
    """Coefficient of the loss that has a mixture of experts use its experts alike (Fedus et al. 2022, who take 0.01).
    0: none. null: the one that the model's configuration names, 0.01 for a new one."""

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        given = [name for name in ("tokenizer", "architecture") if getattr(self, name) is not None]
        if self.model is None and len(given) < 2:
            raise ValueError("a new model needs tokenizer and architecture; one that reads on needs model")
        if self.model is not None and given:
            raise ValueError(f"the model that reads on has its own {given[0]}: leave it out, or model")
        if self.optimizer == "muon" and self.architecture is not None and self.architecture.experts is not None:
            raise ValueError("muon trains matrices, and experts are stacks of them: take adamw")
        return self

    def router_loss_used(self) -> float | None:
        """Coefficient of the routers' loss, where it is set."""
        return self.router_loss

    def makes_base(self) -> bool:
        """Whether the model that it makes is what ``base`` is to the stages after it."""
        return True
