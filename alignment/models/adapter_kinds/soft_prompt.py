"""Virtual tokens in front of every text: PEFT's prompt tuning, prefix tuning and P-tuning, below every pass of a model.

PEFT prepends them in its wrapper's forward, so that outputs grow by their number and only who calls the wrapper sees
them. Here they are prepended in the decoder itself: outputs have the positions of the texts, and whoever calls the
trunk (a head in chunks, a tree of prefixes, a sampler with its own cache) gets what PEFT's pass gives. The files are
PEFT's. Virtual tokens take the first positions, and are read once into an empty cache.
"""

import functools
import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig, PeftModelForCausalLM, PeftType, PromptTuningConfig, TaskType
from transformers import PreTrainedModel

from alignment.errors import StageError
from alignment.models.families import CACHE_ARGUMENT, cache_argument
from alignment.models.families.head import trunk_of

PROBE = 5  # tokens of the pass that is compared with PEFT's
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-6}  # of the largest logit
CLOSE_ELSEWHERE = 5e-2
SHAPES_UNKNOWN = ("bloom", "falcon", "gpt_bigcode")  # families whose keys PEFT lays out otherwise than they do
SOFT_STATE = "soft_prompt.safetensors"  # of a checkpoint: a soft prompt as it is trained
MARK = "virtual_prompt"  # the attribute of a decoder that has its wrapper


class SoftPromptModel(PeftModelForCausalLM):  # type: ignore[misc]  # PEFT is untyped here
    """A causal model with virtual tokens, which its decoder prepends while they are switched on.

    Raises StageError where the model cannot be given them, or its logits would be others than PEFT's.
    """

    _adapters_disabled: bool  # PEFT's own flag

    def __init__(self, model: PreTrainedModel, config: PeftConfig, adapter_name: str = "default") -> None:
        require_family(model, prefix=config.peft_type == PeftType.PREFIX_TUNING)
        super().__init__(model, config, adapter_name)
        decoder = decoder_of(model)
        decoder.forward = types.MethodType(_with_prompt(decoder.forward, self), decoder)
        decoder.__dict__[MARK] = self  # no part of the decoder, whose part it holds

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """The base model's pass, whose decoder prepends the virtual tokens."""
        return self.base_model(*arguments, **options)

    def generate(self, *arguments: Any, **options: Any) -> Any:
        """The base model's search, whose decoder prepends the virtual tokens."""
        return self.base_model.generate(*arguments, **options)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The base model alone for as long as the context lasts."""
        was_off, self._adapters_disabled = self._adapters_disabled, True
        try:
            yield
        finally:
            self._adapters_disabled = was_off

    def switch(self, *, on: bool) -> None:
        """Has the decoder prepend the virtual tokens, or not."""
        self._adapters_disabled = not on

    def virtual(self, rows: int) -> Any:
        """The virtual tokens of ``rows`` texts: embeddings (B, n, D), or of each layer keys and values."""
        return self.get_prompt(rows)

    @property
    def is_prefix(self) -> bool:
        """Whether they are keys and values, and no tokens of their own."""
        return bool(self.active_peft_config.peft_type == PeftType.PREFIX_TUNING)

    @property
    def virtual_tokens(self) -> int:
        """How many there are; 0 while they are switched off."""
        return 0 if self._adapters_disabled else int(self.active_peft_config.num_virtual_tokens)


def virtual_tokens(model: Any) -> int:
    """Tokens that a model puts in front of what it is given; 0 for one without a soft prompt."""
    return model.virtual_tokens if isinstance(model, SoftPromptModel) else 0


def is_soft(config: PeftConfig) -> bool:
    """Whether an adapter's settings are those of virtual tokens."""
    return bool(config.is_prompt_learning)


def load_soft_prompt(model: PreTrainedModel, folder: str, name: str, *, trainable: bool) -> SoftPromptModel:
    """A model with the virtual tokens of a PEFT folder."""
    config = PeftConfig.from_pretrained(folder)
    config.inference_mode = not trainable
    soft = SoftPromptModel(model, config, name)
    soft.load_adapter(folder, name, is_trainable=trainable, torch_device=str(model.device))
    soft.prompt_encoder[name].requires_grad_(trainable)
    return soft


def written_config(config: PeftConfig) -> PeftConfig:
    """The settings that a folder of trained virtual tokens is written with.

    What P-tuning's network makes is saved, not the network: as prompt tuning's, that can be trained on.
    """
    if config.peft_type != PeftType.P_TUNING:
        return config
    return PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=config.num_virtual_tokens,
        token_dim=config.token_dim,
        num_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        num_transformer_submodules=1,
        inference_mode=True,  # as PEFT writes all of them
        base_model_name_or_path=config.base_model_name_or_path,
    )


def decoder_of(model: Any) -> Any:
    """The innermost part of a model that takes a text's embeddings and gives its last hidden states."""
    decoder = trunk_of(model)
    inner = getattr(decoder, "decoder", None)  # OPT's head calls this part of its trunk
    return inner if isinstance(inner, PreTrainedModel) else decoder


def require_family(model: Any, *, prefix: bool) -> None:
    """Raises StageError where a model cannot have virtual tokens."""
    if (found := family_problem(model, prefix=prefix)) is not None:
        raise StageError(": ".join(found))


def family_problem(model: Any, *, prefix: bool) -> tuple[str, str] | None:
    """Why a model, which may be on PyTorch's meta device, cannot have virtual tokens, and what to do; None: it can."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

    kind, others, tokens = type(model).__name__, "take ia3 or lora", "take prompt or p_tuning"
    layers = DynamicCache(config=model.config).layers
    states = any(hasattr(module, "_setup_cache") for module in model.modules())
    states = states or any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
    if states or cache_argument(model) != CACHE_ARGUMENT:
        return f"{kind} reads texts into recurrent states, which virtual tokens are not put in front of", others
    text = model.config.get_text_config()
    if text is not model.config:
        return f"{kind} reads pictures as well, whose places virtual tokens would shift", others
    if getattr(text, "hidden_size_per_layer_input", None):
        return f"{kind} reads the numbers of tokens in each layer, and virtual tokens have none", others
    if not prefix:
        return None
    if any(type(layer) is not DynamicLayer for layer in layers):
        return f"{kind} has sliding windows, which a prefix would leave", tokens
    if getattr(text, "kv_lora_rank", None) or getattr(text, "model_type", "") in SHAPES_UNKNOWN:
        return f"PEFT does not know the shape of the keys and values of {kind}", tokens
    return None


@torch.no_grad()
def check_passes(model: SoftPromptModel) -> None:
    """Raises StageError where the logits of a few tokens are not those of PEFT's own pass."""
    ids = torch.arange(1, PROBE + 1, device=model.device)[None]
    training = model.training
    model.eval()
    try:
        ours = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
        with model.disable_adapter():
            theirs = PeftModelForCausalLM.forward(model, input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    finally:
        model.train(training)
    theirs = theirs[:, -PROBE:].float()
    close = CLOSE.get(model.base_model.dtype, CLOSE_ELSEWHERE) * theirs.abs().max().item()
    if not torch.allclose(ours, theirs, rtol=0, atol=close):
        kind = type(model.base_model).__name__
        raise StageError(f"{kind} gives other logits behind virtual tokens than PEFT's pass: set lora or ia3")


def _with_prompt(method: Any, owner: SoftPromptModel) -> Any:
    """A decoder's forward that prepends the virtual tokens of ``owner`` and gives the positions of the text alone."""
    function = method.__func__
    signature = inspect.signature(function)
    takes_positions = "position_ids" in signature.parameters

    @functools.wraps(function)
    def forward(self: Any, *arguments: Any, **options: Any) -> Any:
        count = owner.virtual_tokens
        given = signature.bind_partial(self, *arguments, **options).arguments
        extra = next((name for name, one in signature.parameters.items() if one.kind is one.VAR_KEYWORD), None)
        given |= given.pop(extra, {}) if extra is not None else {}
        given.pop(next(iter(signature.parameters)))
        if not count:
            return function(self, **given)
        ids: Any = given.get("input_ids")
        embeddings: Any = given.get("inputs_embeds")
        rows, length = embeddings.shape[:2] if ids is None else ids.shape
        cache = given.get("past_key_values")
        starts = cache is None or cache.get_seq_length() == 0
        tokens = count if starts and not owner.is_prefix else 0  # that are read with the text
        given.pop("cache_position", None)  # counted by the cache's length, if at all
        if starts and owner.is_prefix:
            given["past_key_values"] = _filled(cache, owner.virtual(rows))
        if tokens:
            embeddings = self.get_input_embeddings()(ids) if embeddings is None else embeddings
            prompt = owner.virtual(rows).to(embeddings.dtype)
            given |= {"input_ids": None, "inputs_embeds": torch.cat([prompt, embeddings], dim=1)}
        given["attention_mask"] = _seen(given.get("attention_mask"), count, tokens)
        if takes_positions and (positions := given.get("position_ids")) is not None:
            given["position_ids"] = _shifted(positions, count, tokens)
        output = function(self, **given)
        return _text_only(output, tokens, rows, length) if tokens else output

    return forward


def _filled(cache: Any, prefix: Any) -> Any:
    """A cache that begins with a prefix of keys and values; a new one where none is given."""
    if cache is None:
        return prefix
    for place, layer in enumerate(prefix.layers):
        cache.update(layer.keys, layer.values, place)
    return cache


def _seen(mask: torch.Tensor | None, count: int, tokens: int) -> torch.Tensor | None:
    """A mask of texts, (B, K) or (B, 1, T, K), in front of whose keys ``count`` virtual tokens stand, seen by all.

    ``tokens`` of them are queries as well, each of which sees those before it and itself.
    """
    if mask is None:
        return None
    if mask.dim() == 2:
        return torch.cat([mask.new_ones(mask.shape[0], count), mask], dim=1)
    if mask.dtype != torch.bool:
        raise StageError("a mask of added numbers, which virtual tokens are not put in front of")
    wide = torch.cat([mask.new_ones(*mask.shape[:-1], count), mask], dim=-1)
    if not tokens:
        return wide
    own = torch.ones(tokens, count, dtype=torch.bool, device=mask.device).tril()
    top = torch.cat([own, own.new_zeros(tokens, mask.shape[-1])], dim=-1).expand(*mask.shape[:-2], -1, -1)
    return torch.cat([top, wide], dim=-2)


def _shifted(positions: torch.Tensor, count: int, tokens: int) -> torch.Tensor:
    """Positions (B, T) behind ``count`` virtual tokens, those of ``tokens`` that are read with the text in front."""
    own = torch.arange(tokens, device=positions.device).expand(*positions.shape[:-1], tokens)
    return torch.cat([own, positions + count], dim=-1)


def _text_only(output: Any, tokens: int, rows: int, length: int) -> Any:
    """A decoder's output without the places of its first ``tokens``."""
    output.last_hidden_state = output.last_hidden_state[:, tokens:]
    if getattr(output, "hidden_states", None):
        output.hidden_states = tuple(states[:, tokens:] for states in output.hidden_states)
    if getattr(output, "router_logits", None):  # of each layer, (tokens, experts)
        output.router_logits = tuple(
            scores.view(rows, tokens + length, -1)[:, tokens:].reshape(rows * length, -1)
            for scores in output.router_logits
        )
    return output


def soft_prompt_of(trunk: Any) -> Any | None:
    """The soft prompt that a trunk prepends, switched on or not; None where it has none."""
    return trunk.__dict__.get(MARK)


def raw_state(model: SoftPromptModel) -> dict[str, torch.Tensor]:
    """All that is trained of a soft prompt, P-tuning's network included: what a checkpoint must hold."""
    state: dict[str, torch.Tensor] = model.prompt_encoder["default"].state_dict()
    return {name: value.detach().contiguous() for name, value in state.items()}


def restore_raw_state(model: SoftPromptModel, state: dict[str, torch.Tensor]) -> None:
    """Puts back what :func:`raw_state` gave."""
    model.prompt_encoder["default"].load_state_dict(state)
