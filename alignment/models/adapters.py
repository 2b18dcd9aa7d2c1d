"""LoRA adapters: added to a model, recognised, held against the base that they were trained on."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    PreTrainedModel,
)

from alignment.errors import StageError
from alignment.models.families.lora_targets import adapter_problem, chosen_targets
from alignment.recipe.base import Lora
from alignment.records import Artifact

ADAPTER_FILE = "adapter_config.json"


def is_adapter(artifact: Artifact) -> bool:
    """Whether a model artifact is an adapter (else whole weights)."""
    return (Path(artifact.path) / ADAPTER_FILE).exists()


def add_lora(model: PreTrainedModel, lora: Lora, *, reward: bool = False) -> PeftModel:
    """Wraps a model with fresh adapters; a reward model's score head is trained whole.

    Raises StageError where the model has no such layers, or its experts cannot be adapted so.
    """
    adapted = get_peft_model(model, lora_config(model, lora, TaskType.SEQ_CLS if reward else TaskType.CAUSAL_LM))
    _measure_lengths(adapted)
    return train_in_float32(adapted)


def _measure_lengths(model: PeftModel) -> None:
    """Measures the rows of DoRA's weights anew, in float32.

    PEFT does so in the base's format: below bfloat16 weights a fresh adapter was not the base, but up to 0.4 % off.
    """
    for module in model.modules():
        for name, lengths in getattr(module, "lora_magnitude_vector", {}).items():
            factors = {"lora_A": module.lora_A[name].weight, "lora_B": module.lora_B[name].weight}
            with torch.no_grad():
                lengths.update_layer(base_layer=module.get_base_layer(), scaling=module.scaling[name], **factors)


def lora_config(model: Any, lora: Lora, task_type: TaskType | None = None) -> LoraConfig:
    """PEFT's settings of an adapter on a model's layers (:mod:`alignment.models.families.lora_targets`).

    Raises StageError where the model has no such layers, or its experts cannot be adapted so.
    """
    if (found := adapter_problem(model, lora)) is not None:
        raise StageError(f"lora.{found.setting}: {found.problem}: {found.remedy}")
    targets = chosen_targets(model, lora)
    parameters = [target.name for target in targets if target.is_parameter]
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=[target.name for target in targets if not target.is_parameter],
        target_parameters=parameters or None,
        use_rslora=lora.rank_stabilised,
        use_dora=lora.dora,
        task_type=task_type,
    )


def train_in_float32(model: PeftModel) -> PeftModel:
    """Has TRL take an adapter on a quantised base as any other: it would turn it to bfloat16, where steps are lost."""
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = False  # PEFT asks the model below
    return model


def base_of(model: Any) -> Any:
    """The transformers model, without PEFT's wrapper."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def check_base(artifact: Artifact, base: Artifact, scheme: str | None) -> None:
    """Raises StageError where an adapter was made on another base, or on it in other bits (``model.quantise``)."""
    made_on = json.loads((Path(artifact.path) / "base.json").read_text("utf-8"))
    if made_on["digest"] != base.digest:
        raise StageError(
            f"{artifact.ref()} is an adapter for {made_on['base']} ({made_on['digest'][:12]}), "
            f"not for {base.key} ({base.digest[:12]}); name the base it was trained on"
        )
    if (made_in := made_on.get("quantise")) != scheme:
        raise StageError(
            f"{artifact.ref()} was trained on the base in {made_in or 'plain numbers'}, and model.quantise is "
            f"{scheme or 'null'}: set it to {made_in or 'null'}"
        )
