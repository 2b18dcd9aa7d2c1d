"""Which configurations are of an encoder-decoder, and which class loads a policy."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

ADAPTED = "SEQ_2_SEQ_LM"  # PEFT's name of an adapter's task, which its file holds


def is_encoder_decoder(config: Any) -> bool:
    """Whether models of this configuration read a text with an encoder and write another with a decoder."""
    both = bool(getattr(config, "is_encoder_decoder", False))
    return both and type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING


def policy_class(config: Any) -> Any:
    """The auto class of transformers that loads a policy of this configuration."""
    return AutoModelForSeq2SeqLM if is_encoder_decoder(config) else AutoModelForCausalLM


def class_of_folder(folder: Any) -> Any:
    """:func:`policy_class` of a model's folder."""
    return policy_class(AutoConfig.from_pretrained(str(folder)))


def holds_encoder_decoder(folder: Path) -> bool:
    """Whether a folder holds an encoder-decoder, or an adapter of one; False where it holds no model."""
    if (folder / "adapter_config.json").is_file():
        try:
            adapter = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return bool(adapter.get("task_type") == ADAPTED)
    try:
        return is_encoder_decoder(AutoConfig.from_pretrained(str(folder)))
    except (OSError, ValueError):  # of no model that transformers knows
        return False


def decoder_start(model: Any) -> int:
    """The token id with which a model's decoder begins. Raises ValueError where it names none."""
    own = getattr(model.config, "decoder_start_token_id", None)
    start = model.generation_config.decoder_start_token_id if own is None else own
    if start is None:
        raise ValueError(f"{type(model).__name__} names no decoder_start_token_id")
    return int(start)


def forced_first(model: Any) -> int | None:
    """The token id that a model's generation settings begin each answer with (``forced_bos_token_id``), if any."""
    forced = model.generation_config.forced_bos_token_id
    return None if forced is None else int(forced)


def has_own_head(config: Any) -> bool:
    """Whether a model's head is other weights than its embedding: T5 1.1, FLAN-T5 and mT5, whose configurations say in
    transformers 5 that the two are tied. Files that hold both are loaded as they are."""
    return getattr(config, "scale_decoder_outputs", True) is False or config.model_type in ("mt5", "umt5")


def longest_texts(config: Any) -> int | None:
    """Tokens that the encoder, and the decoder, read at most; None where positions are relative and have no end."""
    longest: int | None = getattr(config, "max_position_embeddings", None)
    return longest
