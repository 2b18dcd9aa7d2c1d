"""What `rlhf check` saw of an encoder-decoder, in one line."""

from pathlib import Path
from typing import Any

from alignment.checks.model import inspect_model, read_config
from alignment.models.weights import tensor_shapes
from alignment.recipe.base import MADE_BASE
from alignment.recipe.files import EMBEDDED_PREFIX
from alignment.recipe.resolved import ResolvedRecipe
from alignment.workspace import Workspace

DRAWN = ("num_beams", "no_repeat_ngram_size", "length_penalty", "min_length", "do_sample", "temperature")
"""Generation settings that say how answers are drawn, which the recipe's ``sampling`` says here."""


def encoder_decoder_notice(resolved: ResolvedRecipe, workspace: Workspace | None) -> str | None:
    """The line, of a recipe without faults; None where its model is a decoder alone."""
    settings = resolved.recipe.model
    if settings.base == MADE_BASE or settings.base.startswith(EMBEDDED_PREFIX):
        return None
    from alignment.models.seq2seq.architecture import is_encoder_decoder, longest_texts

    config = read_config(settings, workspace)
    if not is_encoder_decoder(config):
        return None
    tokenizer = inspect_model(settings, workspace).tokenizer
    start = tokenizer.convert_ids_to_tokens(config.decoder_start_token_id)
    longest = longest_texts(config)
    parts = [
        f"{config.model_type} is an encoder with a decoder: its decoder begins with {start}",
        f"ends with {tokenizer.eos_token}",
        f"padding is {tokenizer.pad_token}",
        f"the head is {'its own' if _own_head(settings.base, config) else 'the embedding'}",
        "positions have no end" if longest is None else f"{longest} tokens are read, and as many written",
    ]
    if (unused := _unused(resolved)) is not None:
        parts.append(f"its own {unused} give way to the recipe's sampling")
    return ", ".join(parts)


def _own_head(base: str, config: Any) -> bool:
    """By the names in the files, where they are here: configurations say otherwise."""
    from alignment.models.seq2seq.architecture import has_own_head

    return "lm_head.weight" in tensor_shapes(Path(base)) if Path(base).is_dir() else has_own_head(config)


def _unused(resolved: ResolvedRecipe) -> str | None:
    from transformers import GenerationConfig

    try:
        given = GenerationConfig.from_pretrained(resolved.recipe.model.base).to_diff_dict()
    except (OSError, ValueError):  # none beside it
        return None
    named = [f"{name}={given[name]}" for name in DRAWN if name in given]
    return ", ".join(named) or None
