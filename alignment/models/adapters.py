"""LoRA adapters: added to a model, recognised, held against the base that they were trained on."""

import json
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    PreTrainedModel,
)

from alignment.errors import StageError
from alignment.models.families import LORA_TARGETS
from alignment.recipe.base import Lora
from alignment.records import Artifact

ADAPTER_FILE = "adapter_config.json"


def is_adapter(artifact: Artifact) -> bool:
    """Whether a model artifact is an adapter (else whole weights)."""
    return (Path(artifact.path) / ADAPTER_FILE).exists()


def add_lora(model: PreTrainedModel, lora: Lora, *, reward: bool = False) -> PeftModel:
    """Wraps a model with fresh adapters on every linear layer; a reward model's score head is trained whole."""
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=LORA_TARGETS,
        task_type=TaskType.SEQ_CLS if reward else TaskType.CAUSAL_LM,
    )
    return get_peft_model(model, config)


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
