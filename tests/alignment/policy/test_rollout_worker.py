"""A rollout worker: a copy of the policy that is sent weights, and draws what the policy itself would."""

import pytest
import torch

from alignment.errors import StageError
from alignment.models.adapters import add_lora
from alignment.models.load import load_policy
from alignment.policy.online.rollout_worker import RolloutWorker, trained
from alignment.recipe.base import Lora
from alignment.records import Sampling
from alignment.rollouts.factory import local_engine

PPO = {"kind": "ppo", "model": "sft", "steps": 1, "rewards": [{"kind": "length"}], "lora": {"rank": 4, "alpha": 8}}
PROMPTS = [(5, 6, 7), (8, 9)]
OPTIONS = {"sampling": Sampling(max_new_tokens=8), "seeds": [1, 2, 3, 4], "per_prompt": 2}


def moved(policy, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained(policy).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.mark.parametrize("kind", ["fresh adapter", "the start's adapter", "whole weights"])
def test_it_draws_what_the_policy_draws(kind, base, sft, make_context, tmp_path):
    model = "sft" if kind == "the start's adapter" else "base"
    changes = {"model": model} | ({"lora": None} if kind == "whole weights" else {})
    context = make_context(tmp_path, "ppo", {"base": base, "sft": sft}, changes={"stages.ppo": PPO | changes})
    settings = context.recipe.stages["ppo"]
    policy, tokenizer = load_policy(context.inputs[model], base, context.run, trainable=True)
    if kind == "fresh adapter":
        policy = add_lora(policy, Lora(rank=4, alpha=8))
    worker = RolloutWorker(settings, context)
    for version in (1, 2):
        worker.load(version, trained(moved(policy.eval(), version)))
        theirs, ours = worker.generate(PROMPTS, **OPTIONS), local_engine(policy, tokenizer).generate(PROMPTS, **OPTIONS)
        for one, other in zip(sum(theirs, []), sum(ours, []), strict=True):  # noqa: RUF017 two short lists
            assert (one.tokens, one.text, one.finished) == (other.tokens, other.text, other.finished)
            assert torch.equal(one.logprobs, other.logprobs)
            assert (one.version, other.version) == (version, None)


def test_another_policys_weights_are_refused(base, sft, make_context, tmp_path):
    context = make_context(tmp_path, "ppo", {"base": base, "sft": sft}, changes={"stages.ppo": PPO})
    worker = RolloutWorker(context.recipe.stages["ppo"], context)
    with pytest.raises(StageError, match="not those of the policy"):
        worker.load(1, {"some.weight": torch.zeros(1)})
