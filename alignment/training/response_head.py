"""TRL's fused language-model head, on the answers' tokens alone.

TRL's trainers ask a patched model for log-probabilities instead of logits (``fused_lm_head=True``). Without Triton it
projects every position through the vocabulary, prompts and padding included, in float32. Here only positions with a
label are projected, with the gradient taken in the same pass: see :mod:`alignment.training.token_logprobs`.
"""

import types
from typing import Any

import torch
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule
from trl.trainer.utils import FusedCausalLMOutput

from alignment.models.families import has_plain_head
from alignment.training.token_logprobs import token_statistics

IGNORED = -100


def add_response_head(model: Any) -> None:
    """Replaces the head that TRL patched onto a causal model (under its PEFT wrapper, too), same inputs and outputs.

    The entropy has no gradient: a loss that rewards it needs TRL's own head.

    Left alone are models whose logits are scaled or capped after the head, and mixtures of experts: TRL knows them all.
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    if not has_plain_head(model.config):
        return
    patched = model.forward

    def forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Any = None,
        shift_labels: Any = None,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        if not fused_lm_head or labels is None or shift_labels is not None:
            known = {"labels": labels, "shift_labels": shift_labels, "num_items_in_batch": num_items_in_batch}
            return patched(*args, fused_lm_head=fused_lm_head, **known, **kwargs)
        kwargs["use_cache"] = False
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        head = self.get_output_embeddings()
        if isinstance(head, FSDPModule):
            head.unshard()  # its weight is read here, and not by its own forward, which would gather it
        return _output(hidden, head, labels[:, 1:], num_items_in_batch)

    model.forward = types.MethodType(forward, model)


def _output(hidden: torch.Tensor, head: Any, labels: torch.Tensor, items: Any) -> Any:
    """hidden (B, T, D), labels (B, T) with -100 where nothing is learned → TRL's output, fields (B, T), 0 there.

    The loss is summed over the labels and divided by ``items``, the labels of all accumulated batches, where given.
    """
    label_mask = labels != IGNORED
    kept, wanted = hidden[label_mask], labels[label_mask]

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(label_mask.shape).masked_scatter(label_mask, values)

    logprobs, entropy, is_top1 = token_statistics(kept, head.weight, wanted, head_bias=head.bias)
    with torch.no_grad():  # the mean over the vocabulary of linear logits is linear itself
        bias = 0 if head.bias is None else head.bias.float().mean()
        mean_logits = kept.float() @ head.weight.float().mean(0) + bias
    log_probs = spread(logprobs)
    return FusedCausalLMOutput(
        loss=-log_probs.sum() / (label_mask.sum().clamp(min=1) if items is None else items),
        log_probs=log_probs,
        entropy=spread(entropy),
        label_mask=label_mask,
        mean_logits=spread(mean_logits),
        is_top1=spread(is_top1),
    )
