"""Loading models from artifacts, and saving them into new ones.

A model artifact is a Hugging Face folder: whole weights, or a PEFT adapter. Every adapter of a run is relative to the
run's *base* model, however many stages trained it in turn, so adapter and base cannot be mixed up: its
``adapter_config.json`` names the base as the recipe does, and the base's digest stands in ``base.json``.
"""

import json
from pathlib import Path
from typing import TypeAlias

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from alignment.chat import load_tokenizer
from alignment.faults import StageError
from alignment.models.shared_prefix import share_prefixes
from alignment.recipe import Lora, Recipe, Resources
from alignment.records import Artifact
from alignment.workspace import write_text

disable_progress_bar()  # of loading and writing weights: a stage says where it stands by itself
Policy: TypeAlias = PreTrainedModel | PeftModel
ADAPTER_FILE = "adapter_config.json"


def is_adapter(artifact: Artifact) -> bool:
    """Whether a model artifact is an adapter (else whole weights)."""
    return (Path(artifact.path) / ADAPTER_FILE).exists()


def pick_device(resources: Resources) -> torch.device:
    """The device a recipe asks for. Raises StageError where it asks for a GPU that is not there."""
    if resources.device == "cuda" and not torch.cuda.is_available():
        raise StageError("resources.device is cuda, but torch finds no GPU; set it to auto or cpu")
    use_cuda = resources.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_cuda else "cpu")


def load_policy(
    artifact: Artifact, base: Artifact, recipe: Recipe, *, trainable: bool = False, placed: bool = True
) -> tuple[Policy, PreTrainedTokenizerBase]:
    """A policy and its tokenizer, in the recipe's dtype, in evaluation mode unless ``trainable``.

    ``base`` is what an adapter applies to. Where it is not ``placed``, the model stays in main memory, as one does that
    is to be sharded. Raises StageError where the adapter was made on another base.
    """
    adapter = is_adapter(artifact)
    if adapter:
        check_base(artifact, base)
    source = base if adapter else artifact
    model = AutoModelForCausalLM.from_pretrained(source.path, dtype=getattr(torch, recipe.model.dtype))
    if adapter:
        model = PeftModel.from_pretrained(model, artifact.path, is_trainable=trainable)
    if placed:
        model.to(pick_device(recipe.resources))
    return model.train(trainable), policy_tokenizer(artifact, base, recipe)


def policy_tokenizer(artifact: Artifact, base: Artifact, recipe: Recipe) -> PreTrainedTokenizerBase:
    """A policy's tokenizer without the policy."""
    return load_tokenizer(artifact.path, recipe.model.chat_template if artifact.name == base.name else None)


def load_reward_model(
    artifact: Artifact, recipe: Recipe, *, placed: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A reward model (whole weights, one label) and its tokenizer, in evaluation mode; on its device if ``placed``."""
    model = AutoModelForSequenceClassification.from_pretrained(artifact.path, dtype=getattr(torch, recipe.model.dtype))
    share_prefixes(model)  # several answers to one prompt are the rule where rewards are asked for
    if placed:
        model.to(pick_device(recipe.resources))
    return model.eval(), load_tokenizer(artifact.path)


def new_reward_model(
    artifact: Artifact, base: Artifact, recipe: Recipe, *, placed: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A reward model whose trunk is a policy's (its adapter merged) and whose score head starts at zero.

    A zero head makes every first score 0 and the first loss ln 2, and leaves nothing to a random draw.
    """
    policy, tokenizer = load_policy(artifact, base, recipe, placed=placed)
    trunk = policy.merge_and_unload() if isinstance(policy, PeftModel) else policy
    model = AutoModelForSequenceClassification.from_config(_reward_config(trunk, tokenizer), dtype=trunk.dtype)
    prefix = model.base_model_prefix
    getattr(model, prefix).load_state_dict(getattr(trunk, trunk.base_model_prefix).state_dict())
    torch.nn.init.zeros_(model.score.weight)
    return model.to(trunk.device), tokenizer


def _reward_config(trunk: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> object:
    config = type(trunk.config).from_dict(trunk.config.to_dict())
    config.num_labels = 1
    config.pad_token_id = tokenizer.pad_token_id
    config.name_or_path = trunk.config.name_or_path
    return config


def add_lora(model: PreTrainedModel, lora: Lora, *, reward: bool = False) -> PeftModel:
    """Wraps a model with fresh adapters on every linear layer; a reward model's score head is trained whole."""
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        task_type=TaskType.SEQ_CLS if reward else TaskType.CAUSAL_LM,
    )
    return get_peft_model(model, config)


def save_policy(
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    base: Artifact,
    output: Path,
    *,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes a policy (the adapter alone, where it is one) and its tokenizer as safetensors.

    ``state`` are its whole weights where the model holds only parts of them (:mod:`alignment.sharding`).
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


def check_base(artifact: Artifact, base: Artifact) -> None:
    """Raises StageError where an adapter was made on another base."""
    made_on = json.loads((Path(artifact.path) / "base.json").read_text("utf-8"))
    if made_on["digest"] != base.digest:
        raise StageError(
            f"{artifact.ref()} is an adapter for {made_on['base']} ({made_on['digest'][:12]}), "
            f"not for {base.key} ({base.digest[:12]}); name the base it was trained on"
        )


def stop_ids(model: Policy, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The token ids that end an answer: the tokenizer's EOS, and those that the model's generation settings add."""
    configured = model.generation_config.eos_token_id
    more = configured if isinstance(configured, list) else [configured]
    return {tokenizer.eos_token_id} | {token for token in more if token is not None}
