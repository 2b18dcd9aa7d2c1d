"""The size of a model, from its configuration: it is built on PyTorch's meta device, where weights take nothing."""

from dataclasses import dataclass
from typing import Any

from alignment.recipe.base import Lora


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What the arithmetic needs to know of a causal language model.

    ``linears`` are (inputs, outputs) of every linear layer but the head: the layers that adapters sit on.
    ``query_width`` and ``key_width`` are heads × dimension, per layer; ``inner`` is the width of the feed-forward part.
    """

    parameters: int
    vocabulary: int
    hidden: int
    layers: int
    linears: tuple[tuple[int, int], ...]
    query_width: int
    key_width: int
    inner: int
    gated: bool  # its activation is multiplied with a second product (SwiGLU)
    tied: bool  # the head is the embedding
    shares_prefixes: bool = True  # equal beginnings in a batch are computed once (alignment/models/prefix_sharing.py)

    @property
    def head(self) -> int:
        """The head's weights; all of them are the embedding's where it is tied."""
        return self.vocabulary * self.hidden

    @property
    def trunk(self) -> int:
        """Parameters without a head of their own: what a reward model has, and a critic."""
        return self.parameters - (0 if self.tied else self.head)

    @property
    def matrix(self) -> int:
        """Weights that each token is multiplied with, the head left out."""
        return sum(inputs * outputs for inputs, outputs in self.linears)

    def adapter(self, lora: Lora) -> int:
        """Parameters of an adapter on every linear layer: rank × (inputs + outputs) each (Hu et al. 2021)."""
        return lora.rank * sum(inputs + outputs for inputs, outputs in self.linears)


def model_size(config: Any) -> ModelSize:
    """The size of the model that a Hugging Face configuration describes; no weight is read or made."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    from alignment.models.families import has_plain_attention

    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    head = model.get_output_embeddings()
    text = config.get_text_config()
    heads, hidden, layers = text.num_attention_heads, text.hidden_size, text.num_hidden_layers
    width = getattr(text, "head_dim", None) or hidden // heads
    modules = [module for module in model.modules() if module is not head]
    inner = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * hidden
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=head.weight.shape[0],
        hidden=hidden,
        layers=layers,
        linears=tuple(shape for module in modules if (shape := _shape(module)) is not None),
        query_width=heads * width,
        key_width=(getattr(text, "num_key_value_heads", None) or heads) * width,
        inner=inner,
        gated=any(name.endswith("gate_proj") for name, _module in model.named_modules()),
        tied=head.weight is model.get_input_embeddings().weight,
        shares_prefixes=has_plain_attention(model.base_model),
    )


def _shape(module: Any) -> tuple[int, int] | None:
    """(inputs, outputs) of what PEFT calls linear; GPT-2's convolutions of width 1 hold theirs the other way round."""
    kind = type(module).__name__
    if kind == "Linear":
        return module.in_features, module.out_features
    return tuple(module.weight.shape) if kind == "Conv1D" else None
