"""Quantisation schemes: what makes each, and what it needs of the machine."""

from pathlib import Path
from typing import Any

import torch

from alignment.compression.gguf_export import write_gguf
from alignment.errors import StageError
from alignment.models.fake_quantised import group_of
from alignment.models.quantised import EXTRA, bitsandbytes_config, load_weights, missing_library
from alignment.models.weights import GGUF_FILE
from alignment.recipe.stages.compression.quantise import BITSANDBYTES, GGUF, TORCHAO

NF4_BLOCK = 64  # weights that share a scale in bitsandbytes' 4 bits


def export(
    folder: Path, tokenizer: Any, target: Path, scheme: str, *, dtype: torch.dtype, device: torch.device
) -> None:
    """Writes the model in ``folder``, whose weights are plain numbers, with quantised weights and its tokenizer.

    Weights are written before the model computes anything: bitsandbytes lays 4-bit weights out anew at a processor's
    first product, and what it then writes is another model.

    Raises:
        StageError: a library or a kernel is missing, or the model has no place in such a file.
    """
    from transformers import AutoConfig

    problem = missing(scheme, device.type, str(dtype).removeprefix("torch."))
    problem = problem or width_problem(scheme, device.type, AutoConfig.from_pretrained(folder))
    if problem is not None:
        raise StageError(f"{problem[0]}: {problem[1]}")
    if scheme in GGUF:
        target.mkdir(parents=True, exist_ok=True)
        model = load_weights(folder, torch.float32, None)
        write_gguf(model, tokenizer, target / GGUF_FILE, scheme)
        model.config.save_pretrained(target)
    else:
        from transformers import AutoModelForCausalLM

        config = _configuration(scheme, folder, dtype)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, quantization_config=config, device_map={"": device}
        )
        model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def missing(scheme: str, device: str, dtype: str) -> tuple[str, str] | None:
    """(What a scheme lacks on a device, what to do), or None. ``device`` is torch's name of its type."""
    library = "torchao" if scheme in TORCHAO else "bitsandbytes" if scheme in BITSANDBYTES else None
    if library is not None and missing_library(library) is not None:
        return f"{scheme} is {library}'s, which is not installed", f"run {EXTRA}, or take one of {', '.join(GGUF)}"
    if scheme != "int4":
        return None
    if device != "cuda":
        return "torchao's int4 products have kernels for GPUs alone, and here is none", "take nf4, q4_1 or q4_0"
    if dtype != "bfloat16":
        return f"torchao's int4 products compute in bfloat16, and this is {dtype}", "set model.dtype to bfloat16"
    return None


def width_problem(scheme: str, device: str, config: Any) -> tuple[str, str] | None:
    """(Which layer's rows a scheme cannot divide, what to do), or None."""
    widths = widths_of(config)
    if scheme == "nf4" and device == "cpu" and (odd := [width for width in widths if width % NF4_BLOCK]):
        problem = f"bitsandbytes' nf4 products on a processor take rows of whole blocks of {NF4_BLOCK}, and layers here"
        return f"{problem} have {odd[0]} inputs", "take int8, bnb_int8 or a GGUF scheme"
    if scheme == "int4" and group_of("int4", widths) is None:
        return f"int4 keeps weights in groups of 32 or more, and layers here have {widths} inputs", "take int8"
    return None


def widths_of(config: Any) -> list[int]:
    """The inputs of a decoder's linear layers: of its states, its feed-forward part, and its heads together."""
    text = config.get_text_config()
    heads, hidden = text.num_attention_heads, text.hidden_size
    inner = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * hidden
    return [hidden, inner, heads * (getattr(text, "head_dim", None) or hidden // heads)]


def _configuration(scheme: str, folder: Path, dtype: torch.dtype) -> Any:
    """How transformers is told of a library's scheme."""
    from transformers import AutoConfig, TorchAoConfig

    if scheme in BITSANDBYTES:
        return bitsandbytes_config(scheme, dtype)
    from torchao.quantization import Int4WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

    if scheme == "int8":
        return TorchAoConfig(Int8WeightOnlyConfig(version=2, set_inductor_config=False))
    if scheme == "int8_dynamic":
        return TorchAoConfig(Int8DynamicActivationInt8WeightConfig(version=2, set_inductor_config=False))
    group = group_of(
        "int4", widths_of(AutoConfig.from_pretrained(folder))
    )  # torchao leaves out what it does not divide
    return TorchAoConfig(
        Int4WeightOnlyConfig(group_size=group, int4_packing_format="tile_packed_to_4d", set_inductor_config=False)
    )
