"""Policy, reference and critic on one trunk."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, OPTConfig

from alignment.models.cpu_attention import quick_backward
from alignment.models.prefix_sharing import share_prefixes
from alignment.policy.online.actor_critic import (
    ActorCritic,
    adapter_off,
    frozen_adapter,
    frozen_copy,
    reference_logprobs,
)
from alignment.policy.online.batch import Episode, collate
from alignment.rollouts.engine import Completion

ADAPTER = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def tokens_of(tiny, prompts=((5, 6, 7), (8,)), answers=((9, 10), (11, 12, 13, 1))):
    prompt = tiny.prompts(1)[0][0]
    episodes = [
        Episode(prompt, tuple(p), Completion(tuple(a), "", True)) for p, a in zip(prompts, answers, strict=True)
    ]
    return collate(episodes, torch.device("cpu"))


def shift(model, name="default"):
    """Gives an adapter an effect."""
    torch.manual_seed(5)
    for key, parameter in model.named_parameters():
        if "lora_B" in key and f".{name}." in key:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_values_start_at_zero_and_one_trunk_serves_all_with_an_adapter(tiny):
    base = tiny.policy()
    whole = sum(p.numel() for p in base.parameters())
    policy = get_peft_model(base, ADAPTER)
    actor = ActorCritic(policy, temperature=1.0)
    outputs = actor(tokens_of(tiny))
    assert (outputs.values == 0).all()
    adapter = sum(p.numel() for name, p in policy.named_parameters() if "lora_" in name)
    assert sum(p.numel() for p in actor.parameters()) == whole + adapter + 64 + 1
    assert {name.split(".")[0] for name in actor.trainable()} == {"policy", "value_head"}
    assert all("lora_" in name or name.startswith("value_head") for name in actor.trainable())


def test_the_reference_is_the_policy_without_its_adapter(tiny):
    base = tiny.policy()
    tokens = tokens_of(tiny)
    alone = copy.deepcopy(base)
    share_prefixes(alone)  # as the trainer does: sums in another order would differ in their last bits
    plain = reference_logprobs(alone, tokens, temperature=1.0)
    policy = get_peft_model(base, ADAPTER)
    reference = adapter_off(policy)
    actor = ActorCritic(policy, temperature=1.0)
    assert torch.equal(actor(tokens).logprobs, plain)  # a fresh adapter adds exactly nothing
    shift(policy)
    with reference() as model:
        torch.testing.assert_close(reference_logprobs(model, tokens, temperature=1.0), plain)
    assert (actor(tokens).logprobs - plain).abs().max() > 1e-3
    assert any(p.requires_grad for p in policy.parameters())


def test_the_reference_of_a_trained_adapter_is_its_frozen_copy(tiny, tmp_path):
    policy = shift(get_peft_model(tiny.policy(), ADAPTER))
    policy.save_pretrained(tmp_path)
    tokens = tokens_of(tiny)
    start = ActorCritic(policy, temperature=1.0)(tokens).logprobs.detach()
    trainable = {name for name, p in policy.named_parameters() if p.requires_grad}
    reference = frozen_adapter(policy, str(tmp_path))
    for name, parameter in policy.named_parameters():
        if "lora_B.default" in name:
            parameter.data.mul_(-1.0)
    with reference() as model:
        assert torch.equal(reference_logprobs(model, tokens, temperature=1.0), start)
    moved = ActorCritic(policy, temperature=1.0)(tokens).logprobs
    assert (moved - start).abs().max() > 1e-3
    assert {name for name, p in policy.named_parameters() if p.requires_grad} == trainable
    moved.sum().backward()
    assert all(p.grad is None for name, p in policy.named_parameters() if ".reference." in name)


def test_a_copy_stays_where_it_was(tiny):
    policy = tiny.policy()
    tokens = tokens_of(tiny)
    reference = frozen_copy(policy)
    before = ActorCritic(policy, temperature=1.0)(tokens).logprobs.detach()
    for parameter in policy.parameters():
        parameter.data.add_(0.1)
    with reference() as model:
        assert torch.equal(reference_logprobs(model, tokens, temperature=1.0), before)
        assert not any(p.requires_grad for p in model.parameters())


def test_a_critic_of_its_own_leaves_the_policy_alone(tiny):
    policy = tiny.policy()
    actor = ActorCritic(policy, critic=copy.deepcopy(policy.model), temperature=1.0)
    torch.nn.init.normal_(actor.value_head.weight)
    actor(tokens_of(tiny)).values.sum().backward()
    assert all(p.grad is None for p in policy.parameters())
    assert any(p.grad is not None for p in actor.critic.parameters())
    shared = ActorCritic(policy, temperature=1.0)
    torch.nn.init.normal_(shared.value_head.weight)
    shared(tokens_of(tiny)).values.sum().backward()
    assert any(p.grad is not None for p in policy.parameters())


@pytest.mark.parametrize("with_adapter", [False, True])
def test_recomputed_activations_give_the_same_gradient_without_dropout(tiny, with_adapter):
    grads = []
    for recompute in (False, True):
        policy = tiny.policy(attention_dropout=0.5)
        if with_adapter:
            policy = shift(get_peft_model(policy, ADAPTER))
        actor = ActorCritic(policy, temperature=1.0)
        if recompute:
            actor.checkpoint_activations()
        actor(tokens_of(tiny)).logprobs.sum().backward()
        grads.append({name: p.grad for name, p in actor.trainable().items()})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], msg=name)


def test_recomputed_layers_that_apply_dropout_themselves_do_not(tiny):
    """OPT calls dropout by itself in its layers, by whether they are in training mode."""
    grads = []
    for recompute in (False, True):
        torch.manual_seed(0)
        config = OPTConfig(vocab_size=32, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
                           word_embed_proj_dim=16, dropout=0.5, attention_dropout=0.5, layerdrop=0.0)  # fmt: skip
        actor = ActorCritic(AutoModelForCausalLM.from_config(config), temperature=1.0)
        calls = []
        actor.policy.model.decoder.layers[0].fc1.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        for _again in range(2 if recompute else 1):  # `update` says so at each step
            if recompute:
                actor.checkpoint_activations()
        outputs = actor(tokens_of(tiny))
        outputs.logprobs.sum().backward()
        assert len(calls) == 1 + recompute
        grads.append({name: p.grad for name, p in actor.trainable().items()} | {"logprobs": outputs.logprobs})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], msg=name)


def test_recomputing_happens(tiny):
    """The layers' forward runs again in the backward pass."""
    policy = tiny.policy()
    actor = ActorCritic(policy, temperature=1.0)
    actor.checkpoint_activations()
    calls = []
    policy.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    actor(tokens_of(tiny)).logprobs.sum().backward()
    assert len(calls) == 2


def test_padding_touches_nothing(tiny):
    actor = ActorCritic(tiny.policy(), temperature=1.0)
    together = actor(tokens_of(tiny)).logprobs
    first = actor(tokens_of(tiny, prompts=((5, 6, 7),), answers=((9, 10),))).logprobs
    torch.testing.assert_close(together[:1, :2], first)


def test_attention_is_widened_in_bfloat16_training_passes_only(tiny):
    tokens = tokens_of(tiny)
    for dtype, name in ((torch.float32, "sdpa"), (torch.bfloat16, "sdpa_float32")):
        policy = tiny.policy().to(dtype)
        actor = ActorCritic(policy, temperature=1.0)
        plain = actor(tokens).logprobs
        with quick_backward(*actor.trunks()):
            assert policy.config._attn_implementation == name
            wide = actor(tokens).logprobs
            wide.sum().backward()
        assert policy.config._attn_implementation == "sdpa"
        torch.testing.assert_close(plain, wide, atol=0.02 if dtype == torch.bfloat16 else 0.0, rtol=0.0)
        assert all(p.grad is not None for name, p in policy.named_parameters() if "proj" in name)
