"""What a model family needs otherwise: its head, its attention, its positions, its ends of turn, where adapters attach.

Families are recognised by what they can do and not by their names. Whoever asks takes the plain way where the answer is
no, so that a new family is right first and fast later.
"""

import inspect
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignment.errors import StageError
from alignment.models.encoders.architecture import is_encoder
from alignment.models.seq2seq.architecture import is_encoder_decoder

BATCH_DEPENDENT = ("longrope", "dynamic")
"""Rotary positions that depend on a batch's longest row, which no training may have: "longrope" (Phi-3 and others)
takes other frequencies for every row once one row is longer than the model's original context, and "dynamic" ones grow
with it. The same answer then has other log-probabilities beside a long one."""


CACHE_ARGUMENT, STATES_ARGUMENT = "past_key_values", "cache_params"


def has_plain_attention(trunk: Any) -> bool:
    """Whether every layer attends to all tokens before, at rotary positions that it is given.

    Then a batch may be computed as a tree (:mod:`alignment.models.prefix_sharing`).
    """
    config = trunk.config.get_text_config()
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if is_encoder(config) or is_encoder_decoder(trunk.config):
        return False  # a tree's tokens attend to those before them alone
    takes_positions = "position_ids" in inspect.signature(trunk.forward).parameters
    rotary = hasattr(trunk, "rotary_emb") and takes_own_masks(config)
    return rotary and takes_positions and not windowed and kinds == {"full_attention"}


def takes_own_masks(config: Any) -> bool:
    """Whether attention takes any mask (B, 1, T, T): not where a bias by distance (ALiBi) is made of the padding's."""
    return not getattr(config.get_text_config(), "alibi", False)


def cache_argument(model: Any) -> str | None:
    """The name under which a model's forward takes what it knows of earlier tokens; None where it keeps nothing.

    ``model`` is a model or its class. Models of recurrent states alone (Mamba) have a name of their own.
    """
    accepted = inspect.signature(model.forward).parameters
    return next((name for name in (CACHE_ARGUMENT, STATES_ARGUMENT) if name in accepted), None)


def stop_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The token ids that end an answer: the tokenizer's EOS, and those that the model's generation settings add."""
    configured = model.generation_config.eos_token_id
    more = configured if isinstance(configured, list) else [configured]
    return {tokenizer.eos_token_id} | {token for token in more if token is not None}


def check_rope(config: Any, longest: int | None) -> None:
    """Raises StageError where sequences of ``longest`` tokens would change the positions of those beside them."""
    limit = independent_length(config)
    if limit is not None and longest is not None and longest > limit:
        raise StageError(
            f"sequences of up to {longest} tokens, and beyond {limit} this model's rotary positions depend on the "
            f"longest row of a batch: set max_length (or max_prompt_length and max_new_tokens together) to {limit} "
            "or less"
        )


def independent_length(config: Any) -> int | None:
    """Tokens up to which positions depend on a row alone; None: whatever its length."""
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or {}
    kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    limits = [
        kind.get("original_max_position_embeddings") or text.max_position_embeddings
        for kind in kinds
        if kind.get("rope_type") in BATCH_DEPENDENT
    ]
    return min(limits, default=None)
