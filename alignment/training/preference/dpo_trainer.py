"""TRL's DPO trainer on pairs that we tokenised, what its loss is a mean over, and where its reference comes from."""

from collections.abc import Mapping
from typing import Any

import torch
from trl import DPOTrainer

from alignment.distributed.accumulation import TOKEN_WEIGHT
from alignment.distributed.fsdp import shard_frozen
from alignment.models.fake_quantised import fake_quantise
from alignment.models.families.head import head_kind
from alignment.models.load import load_policy
from alignment.stage import StageContext
from alignment.training.policy import PolicyTraining
from alignment.training.preference.tokenised import Tokenised, fill_reference
from alignment.training.response_head import add_response_head


class TokenisedDPOTrainer(Tokenised, DPOTrainer):  # type: ignore[misc]  # TRL is untyped
    """TRL's trainer, taking the columns that ours already tokenised instead of tokenising by itself."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The batch's loss, its term over tokens ("sft") weighed by its tokens and not by its pairs."""
        weight = inputs.pop(TOKEN_WEIGHT, 1.0)
        given = self.args.loss_weights or [1.0] * len(self.loss_types)
        self.loss_weights = [
            value * weight if name == "sft" else value for name, value in zip(self.loss_types, given, strict=True)
        ]
        return super().compute_loss(model, inputs, *args, **kwargs)


def chosen_token_count(batch: Mapping[str, Any]) -> int:
    """The tokens of chosen answers, which stand in the first half of a batch."""
    chosen: torch.Tensor = batch["completion_mask"][..., 1:].chunk(2)[0]
    return int(chosen.sum())


def computed_beforehand(context: StageContext) -> bool:
    """Whether the reference's log-probabilities are computed once, before training, and not with each batch.

    In float32 alone: in bfloat16 the padding of another batch moves an answer by 0.4 nats, so policy and reference have
    to pass through the same one. And not where the policy is to be sharded: whole, it may not fit.
    """
    return context.run.model.dtype == "float32" and not context.sharded


def frozen_start(training: PolicyTraining, context: StageContext) -> Any:
    """What a policy of whole weights starts from, in the format that these are trained in."""
    model, _tokenizer = load_policy(
        training.start, training.base, context.run, placed=not context.sharded, masters=True
    )
    if training.rounding is not None:  # the policy is its reference at the start
        fake_quantise(model, training.rounding)
    head_kind(model)  # tried while its weights are whole
    return shard_frozen(model) if context.sharded else model.requires_grad_(False)


def add_heads(trainer: Any, reference: Any, context: StageContext) -> None:
    """Our head on a trainer's policy and on its reference of whole weights, which computes as the policy does."""
    for model in filter(None, (trainer.model, reference)):
        add_response_head(model)
    fill_reference(trainer.model)
    if reference is not None and context.run.model.dtype == "bfloat16" and not context.sharded:
        # the head has replaced what accelerate wrapped
        reference.forward = torch.autocast(reference.device.type, torch.bfloat16)(reference.forward)
