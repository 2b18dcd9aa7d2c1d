"""Model folders whose weights are quantised: told apart by their files, and loaded.

torchao's and bitsandbytes' weights are safetensors that transformers reads by the folder's own ``quantization_config``.
A GGUF file is unpacked into the recipe's number format: what it takes in memory here is what the model takes there.
"""

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from alignment.errors import StageError
from alignment.models.seq2seq.architecture import class_of_folder
from alignment.models.weights import GGUF_FILE, held_parts, require_all

LIBRARIES = ("torchao", "bitsandbytes")
"""Quantisation methods, by transformers' names for them, that are a library's own."""
EXTRA = "pip install 'rlhf-flows[compression]'"


def quantisation(folder: Path) -> str | None:
    """How a model folder's weights are quantised, by transformers' name for the method; None where they are not."""
    if (folder / GGUF_FILE).exists():
        return "gguf"
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    method = (config.get("quantization_config") or {}).get("quant_method")
    return None if method is None else str(method)


def missing_library(method: str) -> str | None:
    """The library that reads a method's weights, where it is not installed."""
    return method if method in LIBRARIES and importlib.util.find_spec(method) is None else None


def bitsandbytes_config(scheme: str, dtype: torch.dtype) -> Any:
    """How transformers is told of a scheme of bitsandbytes: 4 bits with products in ``dtype``, or 8."""
    from transformers import BitsAndBytesConfig

    if scheme == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return BitsAndBytesConfig(load_in_8bit=True)


def quantise_on_loading(folder: Path, scheme: str, dtype: torch.dtype, device: torch.device | None) -> Any:
    """The causal language model of a folder of plain numbers, its linear layers but the head quantised on the way in.

    Raises StageError: the folder lacks weights of the model, is quantised already, or bitsandbytes is not installed.
    """
    if (library := missing_library("bitsandbytes")) is not None:
        raise StageError(f"model.quantise is {scheme}, of {library}, which is not installed: {EXTRA}")
    if (method := quantisation(folder)) is not None:
        raise StageError(f"model.quantise is {scheme}, and {folder} is quantised already ({method}): leave it out")
    model, loaded = AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=dtype, quantization_config=bitsandbytes_config(scheme, dtype), output_loading_info=True,
        device_map={"": device or torch.device("cpu")},
    )  # fmt: skip
    require_all(loaded["missing_keys"], str(folder))
    return model


def keep_gradients(model: Any) -> None:
    """Has bitsandbytes' 4-bit layers compute on a processor as they do in training, always.

    In a pass without gradients they lay their weights out anew for faster products in bfloat16, and from then on no
    gradient passes through them: what is below would be trained on nothing, and nobody would say so.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def in_plain_numbers(model: Any, dtype: torch.dtype) -> Any:
    """A model just loaded, the weights that bitsandbytes quantised turned back into numbers of ``dtype``."""
    if getattr(model, "quantization_method", None) != "bitsandbytes":
        return model
    logger = logging.getLogger("transformers.integrations.bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it says that it does what it was told
    try:
        return model.dequantize(dtype=dtype)
    finally:
        logger.setLevel(level)


def load_weights(folder: Path, dtype: torch.dtype, device: torch.device | None) -> Any:
    """The causal language model, or the encoder-decoder, of a folder, quantised or not.

    Args:
        dtype: of the weights that are not quantised, and of what a GGUF file is unpacked into.
        device: where it goes; None leaves it in main memory.

    Raises:
        StageError: the folder lacks weights of the model, or the library that reads them is not installed.
    """
    method = quantisation(folder)
    if method is None:
        kind = class_of_folder(folder)
        model, loaded = kind.from_pretrained(str(folder), dtype=dtype, output_loading_info=True)
        require_all(loaded["missing_keys"], str(folder))
        return model if device is None else model.to(device)
    if (library := missing_library(method)) is not None:
        raise StageError(f"the weights in {folder} are quantised by {library}, which is not installed: {EXTRA}")
    if method == "gguf":
        from transformers import GgufConfig

        unpacked = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=GGUF_FILE, quantization_config=unpacked, dtype=dtype
        )
        return model if device is None else model.to(device)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map={"": device or torch.device("cpu")})


def weight_bytes(model: Any) -> int:
    """Bytes of a model's weights and buffers as they are held, quantised or not, tied ones once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    parts = [part for tensor in tensors.values() for part in held_parts(tensor)]
    states = [getattr(tensor, "quant_state", None) for tensor in tensors.values()]  # scales of bitsandbytes' 4 bits
    parts += [state.absmax for state in states if state is not None]
    parts += [getattr(tensor, "SCB", None) for tensor in tensors.values()]  # and of its 8 bits
    return sum(part.numel() * part.element_size() for part in parts if part is not None)
