"""The size of a model, from its configuration: it is built on PyTorch's meta device, where weights take nothing."""

import math
from dataclasses import dataclass
from typing import Any

from alignment.errors import Fault, InputError
from alignment.recipe.base import AdapterSettings, Lora
from alignment.recipe.stages.adapters import Ia3, SoftPrompt

INNER = ("intermediate_size", "n_inner", "d_ff", "decoder_ffn_dim")  # the width of the feed-forward part


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What the arithmetic needs to know of a causal language model, or of an encoder-decoder.

    ``linears`` are (inputs, outputs) of every linear layer but the head, each expert's too: what adapters sit on.
    ``names`` are theirs, in the same order.
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
    skipped: int = 0  # weights that a token does not meet: of experts, of the encoder where a decoder reads it
    skipped_inputs: int = 0  # and the widths of what they would be given
    names: tuple[str, ...] = ()
    shares_prefixes: bool = True  # equal beginnings in a batch are computed once (alignment/models/prefix_sharing.py)
    config: Any = None  # what it was read from
    own_head: int | None = None  # weights of an encoder's head, which are among its parameters; None: a causal model
    longest: int | None = None  # tokens that an encoder reads of a text

    @property
    def head(self) -> int:
        """The head's weights; all of them are the embedding's where it is tied."""
        return self.vocabulary * self.hidden

    @property
    def trunk(self) -> int:
        """Parameters without a head of their own: what a reward model has, and a critic."""
        return self.parameters - (0 if self.tied else self.head)

    @property
    def score_head(self) -> int:
        """Weights of the head of a model that scores: one output beside a causal trunk, or an encoder's own."""
        return self.hidden if self.own_head is None else self.own_head

    @property
    def scoring(self) -> int:
        """Parameters of a model that scores."""
        return self.trunk + self.hidden if self.own_head is None else self.parameters

    @property
    def matrix(self) -> int:
        """Weights that each token is multiplied with, the head left out: of experts, those that are chosen for it."""
        return sum(inputs * outputs for inputs, outputs in self.linears) - self.skipped

    @property
    def inputs(self) -> int:
        """Numbers that one token gives to all linear layers but the head."""
        return sum(inputs for inputs, _outputs in self.linears) - self.skipped_inputs

    def saved(self, scheme: str, entry: int) -> int:
        """Bytes that a base in fewer bits takes less than one of ``entry`` bytes a weight (``model.quantise``).

        4 bits and a float32 scale for each 64 weights, or 8 and one for each output; the head and the rest stay.
        """
        weights, outputs = (sum(i * o for i, o in self.linears), sum(o for _i, o in self.linears))
        held = weights // 2 + 4 * math.ceil(weights / 64) if scheme == "nf4" else weights + 4 * outputs
        return entry * weights - held

    def trained(self, part: AdapterSettings) -> int:
        """Parameters that are trained of an adapter, or of the model's own weights where ``part`` chooses of those."""
        if isinstance(part, Lora):
            return self.adapter(part)
        from alignment.models.adapter_kinds.ia3 import scaled
        from alignment.models.adapter_kinds.own_weights import chosen_weights
        from alignment.models.adapter_kinds.prompt_start import soft_numbers
        from alignment.models.families.lora_targets import without_weights

        if self.own_head is not None:
            return _chosen_of_encoder(self.config, part)
        model = without_weights(self.config)
        if isinstance(part, Ia3):
            return scaled(model, part).numbers
        if isinstance(part, SoftPrompt):
            return soft_numbers(model, part)
        model.tie_weights()
        return sum(model.get_parameter(name).numel() for name in chosen_weights(model, part))

    def adapter(self, lora: Lora) -> int:
        """Parameters of an adapter: rank × (inputs + outputs) of each linear layer that it is on (Hu et al. 2021).

        DoRA has a length for each output beside them (Liu et al. 2024).
        """
        chosen = self.linears
        if lora.targets is not None:
            from alignment.models.families.lora_targets import is_named

            named = zip(self.linears, self.names, strict=True)
            chosen = tuple(shape for shape, name in named if is_named(name, lora.targets))
        lengths = sum(outputs for _inputs, outputs in chosen) if lora.dora else 0
        rank = lora.rank * (1 if lora.init == "zero" else 2)  # alignment/models/adapter_kinds/lora_start.py
        return rank * sum(inputs + outputs for inputs, outputs in chosen) + lengths


def _chosen_of_encoder(config: Any, part: AdapterSettings) -> int:
    """Weights that ``part`` chooses of an encoder's, without its head's, which are trained with every choice."""
    from alignment.models.adapter_kinds.own_weights import chosen_weights
    from alignment.models.encoders.architecture import head_weights
    from alignment.models.encoders.model import without_weights

    model = without_weights(config)
    head = {name for name, _weight in head_weights(model)}
    return sum(model.get_parameter(name).numel() for name in chosen_weights(model, part) if name not in head)


def encoder_size(config: Any, longest: int) -> ModelSize:
    """The size of the encoder with a head of one output that a configuration describes; it reads ``longest`` tokens."""
    from alignment.models.encoders.architecture import head_weights
    from alignment.models.encoders.model import without_weights
    from alignment.models.families.lora_targets import lora_targets

    model = without_weights(config)
    targets = lora_targets(model)
    heads, hidden = config.num_attention_heads, config.hidden_size
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=config.vocab_size,
        hidden=hidden,
        layers=config.num_hidden_layers,
        linears=tuple((target.inputs, target.outputs) for target in targets),
        names=tuple(target.name for target in targets),
        query_width=hidden // heads * heads,
        key_width=hidden // heads * heads,
        inner=config.intermediate_size,
        gated=config.model_type == "modernbert",
        tied=True,  # it has no output embedding at all
        shares_prefixes=False,
        config=config,
        own_head=sum(weight.numel() for _name, weight in head_weights(model)),
        longest=longest,
    )


def model_size(config: Any) -> ModelSize:
    """The size of the model that a Hugging Face configuration describes; no weight is read or made.

    Of an encoder-decoder both parts are counted, and each token as one of the decoder's, which is the larger part.

    Raises InputError where it describes neither a causal language model nor an encoder-decoder.
    """
    from alignment.models.families import has_plain_attention
    from alignment.models.families.head import trunk_of
    from alignment.models.families.lora_targets import lora_targets, without_weights
    from alignment.models.seq2seq.architecture import has_own_head, is_encoder_decoder

    try:
        model = without_weights(config)
    except ValueError as error:  # the configuration's kind is in none of its tables
        remedy = "give a decoder, such as a Llama or a Qwen"
        problem = f"{config.model_type} is no causal language model"
        raise InputError([Fault(problem, remedy, field="model.base")]) from error
    model.tie_weights()
    head = model.get_output_embeddings()
    text = config.get_text_config()
    hidden, layers = text.hidden_size, text.num_hidden_layers
    heads = getattr(text, "num_attention_heads", None) or 0  # none in a model of recurrent states
    width = (getattr(text, "head_dim", None) or hidden // heads) if heads else 0
    targets = lora_targets(model)
    both = is_encoder_decoder(config)
    tied = head.weight is model.get_input_embeddings().weight
    apart = both and tied and has_own_head(config)
    if both:
        layers += getattr(config, "num_decoder_layers", None) or config.decoder_layers
    inner = next((size for name in INNER if (size := getattr(text, name, None))), 4 * hidden)
    unread = [target for target in targets if both and ".encoder." in f".{target.name}"]
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()) + (head.weight.numel() if apart else 0),
        vocabulary=head.weight.shape[0],
        hidden=hidden,
        layers=layers,
        linears=tuple((target.inputs, target.outputs) for target in targets for _ in range(target.matrices)),
        names=tuple(target.name for target in targets for _ in range(target.matrices)),
        query_width=heads * width,
        key_width=(getattr(text, "num_key_value_heads", None) or heads) * width,
        inner=inner,
        gated=any(
            name.endswith(("gate_proj.weight", "gate_up_proj", "wi_1.weight"))
            for name, _weight in model.named_parameters()
        ),
        tied=tied and not apart,
        skipped=sum((target.matrices - target.used) * target.inputs * target.outputs for target in targets)
        + sum(target.inputs * target.outputs for target in unread),
        skipped_inputs=sum((target.matrices - target.used) * target.inputs for target in targets)
        + sum(target.inputs for target in unread),
        shares_prefixes=has_plain_attention(trunk_of(model)),
        config=config,
    )
