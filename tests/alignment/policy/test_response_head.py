"""Our head against the one that TRL patches on: the same outputs, the same gradients, for fewer positions."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from alignment.training.response_head import add_response_head


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 32, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :2] = mask[2, 7:] = 0  # padded on the left, and on the right
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :4] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("adapter", [False, True])
def test_outputs_and_gradients_are_trls(adapter, batch, tiny):
    found = []
    for ours in (False, True):
        model = copy.deepcopy(tiny.policy())
        if adapter:
            torch.manual_seed(1)
            model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        fields = ("log_probs", "entropy", "mean_logits", "is_top1")
        add_fused_lm_head(model.get_base_model() if adapter else model, outputs=fields)
        if ours:
            add_response_head(model)
        output = model(**batch, fused_lm_head=True)
        (output.log_probs * torch.linspace(-1, 1, output.log_probs.numel()).view_as(output.log_probs)).sum().backward()
        found.append((output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (theirs, their_grads), (mine, my_grads) = found
    for field in ("loss", *fields):
        torch.testing.assert_close(getattr(mine, field), getattr(theirs, field), atol=1e-5, rtol=1e-5, msg=field)
    assert my_grads.keys() == their_grads.keys()
    for name, grad in their_grads.items():
        torch.testing.assert_close(my_grads[name], grad, atol=1e-5, rtol=1e-4, msg=name)
