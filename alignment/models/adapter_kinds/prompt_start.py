"""Where virtual tokens start: at the embeddings, or keys and values, of words."""

import math
from typing import Any

import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, TaskType
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.errors import StageError
from alignment.models.adapter_kinds.soft_prompt import SoftPromptModel, check_passes, decoder_of, require_family
from alignment.recipe.stages.adapters import PrefixTuning, PromptTuning, PTuning, SoftPrompt


def add_soft_prompt(
    model: PreTrainedModel, settings: SoftPrompt, tokenizer: PreTrainedTokenizerBase | None
) -> SoftPromptModel:
    """Wraps a model with fresh virtual tokens. Raises StageError where it cannot have them."""
    require_family(model, prefix=isinstance(settings, PrefixTuning))
    start = None if isinstance(settings, PTuning) else start_tokens(model, settings, tokenizer)
    keys_values = _keys_values(model, start) if isinstance(settings, PrefixTuning) and start is not None else None
    soft = SoftPromptModel(model, soft_config(model, settings))
    encoder = soft.prompt_encoder["default"]
    if keys_values is not None:
        encoder.embedding.weight.data = keys_values
    elif start is not None:
        embeddings = decoder_of(model).get_input_embeddings()
        with torch.no_grad():
            encoder.embedding.weight.data = embeddings(start).float().clone()
    encoder.float()
    check_passes(soft)
    return soft


def soft_config(model: Any, settings: SoftPrompt) -> Any:
    """PEFT's settings of virtual tokens on a model."""
    text = model.config.get_text_config()
    width = decoder_of(model).get_input_embeddings().weight.shape[1]
    shared: dict[str, Any] = {
        "task_type": TaskType.CAUSAL_LM,
        "num_virtual_tokens": settings.tokens,
        "num_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_transformer_submodules": 1,
        "token_dim": width,
    }
    if isinstance(settings, PromptTuning):
        return PromptTuningConfig(**shared)
    if isinstance(settings, PTuning):
        return PromptEncoderConfig(**shared, encoder_hidden_size=settings.hidden or width)
    heads, size = key_shape(model)
    return PrefixTuningConfig(**shared | {"num_attention_heads": heads, "token_dim": heads * size})


def key_shape(model: Any) -> tuple[int, int]:
    """A layer's heads of keys, and their size."""
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return getattr(text, "num_key_value_heads", None) or heads, size


def start_tokens(model: Any, settings: SoftPrompt, tokenizer: PreTrainedTokenizerBase | None) -> torch.Tensor:
    """The token ids (n,) that virtual tokens start as."""
    text = settings.text if isinstance(settings, PromptTuning | PrefixTuning) else None
    if text is None:
        size = decoder_of(model).get_input_embeddings().weight.shape[0]
        return torch.randint(0, size, (settings.tokens,)).to(model.device)
    if tokenizer is None:
        raise StageError("virtual tokens that start as words need a tokenizer")
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise StageError(f"adapter.text: {text!r} has no tokens: write a word, or leave it out")
    repeated = ids * math.ceil(settings.tokens / len(ids))
    return torch.tensor(repeated[: settings.tokens], device=model.device)


@torch.no_grad()
def _keys_values(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The keys and values that a model has of tokens (n,), as PEFT lays them out: (n, layers × 2 × heads × size)."""
    training = model.training
    model.eval()
    try:
        cache = model(input_ids=ids[None], use_cache=True).past_key_values
    finally:
        model.train(training)
    parts = [states[0].transpose(0, 1).flatten(1) for layer in cache.layers for states in (layer.keys, layer.values)]
    return torch.cat(parts, dim=-1).float()


def soft_numbers(model: Any, settings: SoftPrompt) -> int:
    """Parameters of virtual tokens that are trained, P-tuning's network included."""
    config = soft_config(model, settings)
    if isinstance(settings, PrefixTuning):
        return settings.tokens * 2 * int(config.num_layers) * int(config.token_dim)
    width = int(config.token_dim)
    if not isinstance(settings, PTuning):
        return settings.tokens * width
    hidden = settings.hidden or width
    return settings.tokens * width + hidden * (width + 1) + hidden * (hidden + 1) + width * (hidden + 1)
