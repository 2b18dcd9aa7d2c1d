"""Reward models: a trunk with a score head of one output, new or loaded, and their scores."""

from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignment.chat import load_tokenizer
from alignment.models.device import pick_device
from alignment.models.load import load_policy
from alignment.models.prefix_sharing import share_prefixes
from alignment.recipe.run_settings import RunSettings
from alignment.records import Artifact


def load_reward_model(
    artifact: Artifact, run: RunSettings, *, placed: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A reward model (whole weights, one label) and its tokenizer, in evaluation mode; on its device if ``placed``."""
    model = AutoModelForSequenceClassification.from_pretrained(artifact.path, dtype=getattr(torch, run.model.dtype))
    share_prefixes(model)  # several answers to one prompt are the rule where rewards are asked for
    if placed:
        model.to(pick_device(run.resources))
    return model.eval(), load_tokenizer(artifact.path)


def new_reward_model(
    artifact: Artifact, base: Artifact, run: RunSettings, *, placed: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A reward model whose trunk is a policy's (its adapter merged) and whose score head starts at zero.

    A zero head makes every first score 0 and the first loss ln 2, and leaves nothing to a random draw.
    """
    policy, tokenizer = load_policy(artifact, base, run, placed=placed)
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


@torch.inference_mode()
def score(model: Any, tokenizer: Any, sequences: list[list[int]], *, batch_size: int = 32) -> list[float]:
    """The reward of each token sequence (prompt and answer, EOS included), in the order given.

    Sorted by length inside, so that padding costs little; right-padded, as in training.
    """
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    scores = [0.0] * len(sequences)
    model.eval()
    for begin in range(0, len(order), batch_size):
        chunk = order[begin : begin + batch_size]
        batch = tokenizer.pad({"input_ids": [sequences[i] for i in chunk]}, return_tensors="pt").to(model.device)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float().squeeze(-1)
        for index, value in zip(chunk, logits.tolist(), strict=True):
            scores[index] = float(value)
    return scores
