"""Rotary positions that depend on a batch's longest row, which no training may have.

"longrope" (Phi-3 and others) takes other frequencies for every row once one row is longer than the model's original
context, and "dynamic" ones grow with it: the same answer then has other log-probabilities beside a long one.
"""

from typing import Any

from alignment.errors import StageError

BATCH_DEPENDENT = ("longrope", "dynamic")


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
