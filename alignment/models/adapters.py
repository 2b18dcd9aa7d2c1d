"""LoRA adapters: added to a model, recognised, held against the base that they were trained on."""

import json
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    PreTrainedModel,
)

from alignment.errors import StageError
from alignment.models.families.lora_targets import lora_targets
from alignment.recipe.base import Lora
from alignment.records import Artifact

ADAPTER_FILE = "adapter_config.json"


def is_adapter(artifact: Artifact) -> bool:
    """Whether a model artifact is an adapter (else whole weights)."""
    return (Path(artifact.path) / ADAPTER_FILE).exists()


def add_lora(model: PreTrainedModel, lora: Lora, *, reward: bool = False) -> PeftModel:
    """Wraps a model with fresh adapters on every linear layer; a reward model's score head is trained whole.

    Raises StageError where they are to drop inputs of experts, which PEFT cannot.
    """
    return get_peft_model(model, lora_config(model, lora, TaskType.SEQ_CLS if reward else TaskType.CAUSAL_LM))


def lora_config(model: Any, lora: Lora, task_type: TaskType | None = None) -> LoraConfig:
    """PEFT's settings of an adapter on every linear layer of a model (:mod:`alignment.models.families.lora_targets`).

    Raises StageError where it is to drop inputs of experts.
    """
    targets = lora_targets(model)
    parameters = [target.name for target in targets if target.is_parameter]
    if parameters and lora.dropout:
        raise StageError(
            f"lora.dropout={lora.dropout:g}, and adapters on the experts of {type(model).__name__} have none: "
            "set it to 0"
        )
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=[target.name for target in targets if not target.is_parameter],
        target_parameters=parameters or None,
        task_type=task_type,
    )


def base_of(model: Any) -> Any:
    """The transformers model, without PEFT's wrapper."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def check_base(artifact: Artifact, base: Artifact) -> None:
    """Raises StageError where an adapter was made on another base."""
    made_on = json.loads((Path(artifact.path) / "base.json").read_text("utf-8"))
    if made_on["digest"] != base.digest:
        raise StageError(
            f"{artifact.ref()} is an adapter for {made_on['base']} ({made_on['digest'][:12]}), "
            f"not for {base.key} ({base.digest[:12]}); name the base it was trained on"
        )
