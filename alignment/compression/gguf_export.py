"""A causal language model as one GGUF file, which llama.cpp and what stands on it read.

Weights of two dimensions go into blocks of 32 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); vectors stay
in float32. What a file needs beside weights is named by the keys that the ``gguf`` package knows.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from alignment.compression.gguf_vocabulary import add_vocabulary
from alignment.errors import StageError

TYPES = {
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q5_1": (gguf.GGMLQuantizationType.Q5_1, gguf.LlamaFileType.MOSTLY_Q5_1),
    "q5_0": (gguf.GGMLQuantizationType.Q5_0, gguf.LlamaFileType.MOSTLY_Q5_0),
    "q4_1": (gguf.GGMLQuantizationType.Q4_1, gguf.LlamaFileType.MOSTLY_Q4_1),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
BLOCK = 32  # weights of a row that share a scale
EMBEDDINGS = ("token_embd.weight", "output.weight")  # a table that every token goes through: never below 8 bits


def architecture_problem(config: Any) -> str | None:
    """Why a model of this configuration cannot be written as GGUF; None where it can."""
    if config.model_type not in ARCHITECTURES:
        return f"a GGUF file of a {config.model_type} model is not known here (of {', '.join(ARCHITECTURES)} it is)"
    rope = getattr(config, "rope_parameters", None) or {}
    if (kind := rope.get("rope_type", "default")) != "default":
        return f"its rotary positions are scaled ({kind}), which the export does not write"
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return "its attention has a sliding window, which the export does not write" if windowed else None


def write_gguf(model: Any, tokenizer: Any, target: Path, scheme: str) -> None:
    """Writes ``model`` as ``target``.

    Args:
        model: a transformers model of one of :data:`ARCHITECTURES`, its weights plain numbers.
        scheme: one of :data:`TYPES`.

    Raises:
        StageError: the model, a weight of it or the tokenizer has no place in a GGUF file.
    """
    if (problem := architecture_problem(model.config)) is not None:
        raise StageError(problem)
    kind, file_type = TYPES[scheme]
    writer = gguf.GGUFWriter(target, model.config.model_type)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, model.config)
    add_vocabulary(writer, tokenizer, model.config.vocab_size)
    for name, weight in _named(model):
        data, stored = _stored(name, weight, kind)
        writer.add_tensor(name, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    heads, hidden = config.num_attention_heads, config.hidden_size
    width = getattr(config, "head_dim", None) or hidden // heads
    writer.add_name(Path(str(config.name_or_path or config.model_type)).name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(hidden)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _named(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight under GGUF's name, a tied head left out. Raises StageError for one that has none."""
    config = model.config
    names = gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    for name, weight in model.state_dict().items():
        if name in tied:
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise StageError(f"the weight {name} has no place in a GGUF file of a {config.model_type} model")
        plain = weight.detach().to("cpu", torch.float32)
        if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            plain = paired(plain, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        yield found, plain


def paired(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries or keys (heads × width, D) as llama.cpp's Llama rotates them: neighbours make a pair, where
    transformers pairs each row of a head's first half with that of its second."""
    return weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _stored(
    name: str, weight: torch.Tensor, kind: gguf.GGMLQuantizationType
) -> tuple[np.ndarray[Any, Any], gguf.GGMLQuantizationType]:
    """A weight's bytes and their type. Rows that are no whole blocks stay in 16 bits."""
    if weight.ndim < 2:
        stored = gguf.GGMLQuantizationType.F32
    elif weight.shape[-1] % BLOCK:
        stored = gguf.GGMLQuantizationType.F16
    else:
        stored = gguf.GGMLQuantizationType.Q8_0 if name in EMBEDDINGS else kind
    return gguf.quants.quantize(weight.numpy(), stored), stored
