"""Adapters: added to a model, recognised, loaded, held against the base that they were trained on."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.errors import StageError
from alignment.models.adapter_kinds.ia3 import ia3_config, ia3_problem
from alignment.models.adapter_kinds.lora_start import start_at_weights
from alignment.models.adapter_kinds.own_weights import freeze
from alignment.models.adapter_kinds.prompt_start import add_soft_prompt
from alignment.models.adapter_kinds.soft_prompt import SoftPromptModel, is_soft, load_soft_prompt
from alignment.models.encoders.architecture import head_parts
from alignment.models.families.lora_targets import adapter_problem, chosen_targets
from alignment.models.seq2seq.architecture import is_encoder_decoder
from alignment.recipe.base import AdapterSettings, Lora
from alignment.recipe.stages.adapters import Ia3, SoftPrompt
from alignment.records import Artifact

ADAPTER_FILE = "adapter_config.json"


def is_adapter(artifact: Artifact) -> bool:
    """Whether a model artifact is an adapter (else whole weights)."""
    return (Path(artifact.path) / ADAPTER_FILE).exists()


def adapt(model: Any, part: AdapterSettings | None, tokenizer: PreTrainedTokenizerBase, *, reward: bool = False) -> Any:
    """A model ready for the training of ``part``: wrapped with a fresh adapter, or all other weights frozen.

    None leaves it as it is, all of its weights to be trained. Raises StageError where the model has no such part.
    """
    if isinstance(part, Lora):
        return add_lora(model, part, reward=reward)
    if isinstance(part, Ia3):
        return add_ia3(model, part, reward=reward)
    if isinstance(part, SoftPrompt):
        return train_in_float32(add_soft_prompt(model, part, tokenizer))
    return model if part is None else freeze(model, part)


def add_ia3(model: PreTrainedModel, ia3: Ia3, *, reward: bool = False) -> PeftModel:
    """Wraps a model with factors of 1; a reward model's score head is trained whole. Raises StageError."""
    if (found := ia3_problem(model, ia3)) is not None:
        setting, problem, remedy = found
        raise StageError(f"adapter.{setting}: {problem}: {remedy}")
    adapted = get_peft_model(model, ia3_config(model, ia3, TaskType.SEQ_CLS if reward else TaskType.CAUSAL_LM))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return train_in_float32(adapted)


def load_adapter(model: PreTrainedModel, folder: str, name: str = "default", *, trainable: bool = False) -> PeftModel:
    """A model with the adapter of a PEFT folder, of whatever kind."""
    if is_soft(PeftConfig.from_pretrained(folder)):
        return load_soft_prompt(model, folder, name, trainable=trainable)
    return PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=trainable)


def merged(model: Any, what: str) -> Any:
    """The whole weights of a model, its adapter merged. Raises StageError for virtual tokens, which ``what`` has."""
    if isinstance(model, SoftPromptModel):
        raise StageError(f"{what} has virtual tokens, which cannot be merged into weights")
    return model.merge_and_unload() if isinstance(model, PeftModel) else model


def adapter_weights(model: Any, adapter: str) -> dict[str, torch.nn.Parameter]:
    """An adapter's weights by the names that they have without the adapter's."""
    return {
        ".".join(part for part in parts if part != adapter): weight
        for name, weight in model.named_parameters()
        if adapter in (parts := name.split("."))
    }


def copy_adapter(model: PeftModel, target: str) -> None:
    """Gives the adapter ``target``, which is there, the trained one's weights, and freezes it."""
    trained, held = adapter_weights(model, "default"), adapter_weights(model, target)
    if trained.keys() != held.keys():
        raise StageError(f"the adapter {target} has other weights than the one that is trained")
    with torch.no_grad():
        for name, weight in held.items():
            weight.copy_(trained[name])
            weight.requires_grad_(False)


def add_lora(model: PreTrainedModel, lora: Lora, *, reward: bool = False) -> PeftModel:
    """Wraps a model with fresh adapters; a reward model's score head is trained whole.

    Raises StageError where the model has no such layers, or its experts cannot be adapted so.
    """
    adapted = get_peft_model(model, lora_config(model, lora, TaskType.SEQ_CLS if reward else _writing(model)))
    if lora.init != "zero":
        start_at_weights(adapted, lora)
    _measure_lengths(adapted)
    return train_in_float32(adapted)


def _writing(model: PreTrainedModel) -> TaskType:
    return TaskType.SEQ_2_SEQ_LM if is_encoder_decoder(model.config) else TaskType.CAUSAL_LM


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
    twice = 1 if lora.init == "zero" else 2  # the second half subtracts the start
    return LoraConfig(
        r=twice * lora.rank,
        lora_alpha=lora.alpha * (twice**0.5 if lora.rank_stabilised else twice),
        lora_dropout=lora.dropout,
        target_modules=[target.name for target in targets if not target.is_parameter],
        target_parameters=parameters or None,
        use_rslora=lora.rank_stabilised,
        use_dora=lora.dora,
        modules_to_save=(list(head_parts(model)) or None) if task_type == TaskType.SEQ_CLS else None,
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
