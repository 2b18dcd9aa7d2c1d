"""Loading models from artifacts, and saving them into new ones.

A model artifact is a Hugging Face folder: whole weights, or a PEFT adapter. Every adapter of a run is relative to the
run's *base* model, however many stages trained it in turn, so adapter and base cannot be mixed up: its
``adapter_config.json`` names the base as the recipe does, and the base's digest stands in ``base.json``.
"""

import json
from pathlib import Path
from typing import TypeAlias

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from alignment.chat import load_tokenizer
from alignment.models.adapters import check_base, is_adapter
from alignment.models.device import pick_device
from alignment.recipe.run_settings import RunSettings
from alignment.records import Artifact
from alignment.workspace import write_text

disable_progress_bar()  # of loading and writing weights: a stage says where it stands by itself
Policy: TypeAlias = PreTrainedModel | PeftModel


def load_policy(
    artifact: Artifact, base: Artifact, run: RunSettings, *, trainable: bool = False, placed: bool = True
) -> tuple[Policy, PreTrainedTokenizerBase]:
    """A policy and its tokenizer, in the recipe's dtype, in evaluation mode unless ``trainable``.

    ``base`` is what an adapter applies to. Where it is not ``placed``, the model stays in main memory, as one does that
    is to be sharded. Raises StageError where the adapter was made on another base.
    """
    adapter = is_adapter(artifact)
    if adapter:
        check_base(artifact, base)
    source = base if adapter else artifact
    model = AutoModelForCausalLM.from_pretrained(source.path, dtype=getattr(torch, run.model.dtype))
    if adapter:
        model = PeftModel.from_pretrained(model, artifact.path, is_trainable=trainable)
    if placed:
        model.to(pick_device(run.resources))
    return model.train(trainable), policy_tokenizer(artifact, base, run)


def policy_tokenizer(artifact: Artifact, base: Artifact, run: RunSettings) -> PreTrainedTokenizerBase:
    """A policy's tokenizer without the policy."""
    return load_tokenizer(artifact.path, run.model.chat_template if artifact.name == base.name else None)


def save_policy(
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    base: Artifact,
    output: Path,
    *,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes a policy (the adapter alone, where it is one) and its tokenizer as safetensors.

    ``state`` are its whole weights where the model holds only parts of them (:mod:`alignment.distributed.fsdp`).
    """
    if isinstance(model, PeftModel):
        config = model.peft_config["default"]
        config.base_model_name_or_path = base.key
        if isinstance(config.target_modules, set):  # written in the order of this process's hashes otherwise
            config.target_modules = sorted(config.target_modules)
        # Embeddings are never trained; asked to find out by itself, PEFT would look for the base on the hub.
        model.save_pretrained(output, state_dict=state, selected_adapters=["default"], save_embedding_layers=False)
        (output / "README.md").unlink(missing_ok=True)  # PEFT's empty card; the registry writes a true one
        write_text(output / "base.json", json.dumps({"base": base.key, "digest": base.digest}, indent=1) + "\n")
    else:
        model.save_pretrained(output, state_dict=state)
    tokenizer.save_pretrained(output)


def stop_ids(model: Policy, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The token ids that end an answer: the tokenizer's EOS, and those that the model's generation settings add."""
    configured = model.generation_config.eos_token_id
    more = configured if isinstance(configured, list) else [configured]
    return {tokenizer.eos_token_id} | {token for token in more if token is not None}
