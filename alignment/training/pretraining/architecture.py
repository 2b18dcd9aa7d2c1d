"""A new language model, of a few settings: Llama's architecture, or Mixtral's where it has experts."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from alignment.recipe.stages.pretraining.pretrain import Architecture

BALANCE = 0.01  # coefficient of the routers' loss (Fedus et al. 2022, section 2.2)


def new_config(shape: Architecture, tokenizer: Any, context: int) -> PreTrainedConfig:
    """The configuration of a model of that shape, for a tokenizer and ``context`` positions."""
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.width,
        "intermediate_size": shape.inner_width(),
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads or shape.heads,
        "head_dim": shape.width // shape.heads,
        "max_position_embeddings": context,
        "tie_word_embeddings": shape.tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if shape.experts is None:
        return AutoConfig.for_model("llama", **values)
    return AutoConfig.for_model(
        "mixtral",
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.experts_per_token,
        router_aux_loss_coef=BALANCE,
        sliding_window=None,
        **values,
    )
