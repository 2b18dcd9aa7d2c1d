"""Each loss and its gradient are those of TRL's trainers on the same batch, which are the reference here."""

import math
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from alignment.policy.advantages import (
    group_advantages,
    leave_one_out_advantages,
    normalised,
    separately_normalised,
)
from alignment.policy.grpo.experience import GroupExperience
from alignment.policy.grpo.update import GroupLoss
from alignment.policy.objectives.aggregation import aggregation_weights
from alignment.policy.objectives.table import OBJECTIVES, token_losses
from alignment.policy.objectives.terms import Options, Terms
from alignment.policy.online.actor_critic import Actor, read
from alignment.policy.online.batch import Episode, collate
from alignment.recipe.stages.grpo import LOSSES, GrpoLoss
from alignment.rollouts.engine import Completion

LONGEST = 9
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SHARED = {"per_device_train_batch_size": 6, "num_generations": 3, "max_completion_length": LONGEST, "use_cpu": True,
          "bf16": False, "report_to": [], "beta": 0.0}  # fmt: skip


@pytest.fixture
def batch(tiny):
    """A minibatch of six answers of one to nine tokens, the first of two in its step, and what was known of them
    before: some ratios lie beyond every bound."""
    torch.manual_seed(3)
    lengths = [9, 1, 4, 6, 2, 5, 3, 3, 7, 1, 2, 4]
    episodes = [
        Episode(prompt, ids, Completion(tuple(torch.randint(3, 30, (length,)).tolist()), "", True))
        for (prompt, ids), length in zip(tiny.prompts(12), lengths, strict=True)
    ]
    policy = tiny.policy()
    tokens = collate(episodes, torch.device("cpu"))
    with torch.no_grad():
        now = tokens.scatter(read(policy, tokens, 1.0)[1])
    noise = torch.randn(now.shape)
    noise[0], noise[1] = -2.0, 2.0  # each bound stops something: a better answer's ratio is high, a worse one's low
    kept = tokens.mask.float()
    return SimpleNamespace(
        policy=policy, episodes=episodes, mask=tokens.mask, minibatch=list(range(6)),
        old={"token": now + 0.3 * noise * kept, "sequence": now + 1e-3 * noise * kept,
             "answer": now + 0.1 * noise * kept},
        ref=now + 0.2 * torch.randn(now.shape) * kept, weights=(0.3 * torch.randn(now.shape) * kept).exp(),
        advantages=torch.tensor([1.3, -0.7, -1.1, 0.4, 0.9, -0.8] * 2),
    )  # fmt: skip


def padded(rows, width, *, left=False):
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[place, where], mask[place, where] = torch.tensor(row), 1
    return ids, mask


def trl_trainer(kind, config, tiny, policy, folder, **options):
    def stub(completions, **_):
        return [0.0] * len(completions)

    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = "w2"
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    rows = Dataset.from_list([{"prompt": f"w{place}"} for place in range(12)])
    arguments = config(output_dir=str(folder), **SHARED, **options)
    made = kind(model=policy, reward_funcs=[stub], args=arguments, train_dataset=rows, processing_class=tokenizer)
    made.current_gradient_accumulation_steps = 1
    return made


def gradients(policy, loss):
    policy.zero_grad()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def inputs_of(batch):
    episodes = [batch.episodes[row] for row in batch.minibatch]
    prompts, prompt_mask = padded([e.prompt_ids for e in episodes], 5, left=True)
    answers, mask = padded([e.completion.tokens for e in episodes], batch.mask.shape[1])
    return {"prompt_ids": prompts, "prompt_mask": prompt_mask, "completion_ids": answers, "completion_mask": mask,
            "advantages": batch.advantages[batch.minibatch]}  # fmt: skip


def ours(batch, settings, *, old, weights=None):
    """The engine's loss of the minibatch in two pieces, and its gradient."""
    experience = GroupExperience(
        batch.episodes, batch.mask, batch.mask, old, batch.ref if settings.beta and settings.kind == "grpo" else None,
        None if weights is None else old - weights.log(), torch.zeros_like(old),
        batch.advantages[:, None].expand(batch.mask.shape), batch.advantages, batch.advantages, fresh=False,
    )  # fmt: skip
    actor = Actor(batch.policy, temperature=1.0)
    loss_of = GroupLoss(batch.minibatch, experience, actor, settings, None if weights is None else 100.0)
    losses, stats = zip(*(loss_of(rows, False) for rows in (batch.minibatch[:4], batch.minibatch[4:])), strict=True)
    return *gradients(batch.policy, sum(losses)), stats


CASES = [
    *[(loss, {}) for loss in get_args(GrpoLoss)],
    *[(loss, {"beta": 0.07, "weighed": True}) for loss in get_args(GrpoLoss)],
    ("grpo", {"delta": 1.3}),
    ("dapo", {"delta": 1.35}),
    ("luspo", {"level": "token", "clip": (0.2, 0.2)}),
    ("cispo", {"level": "sequence", "clip": (None, 1.0002)}),
    ("cispo", {"clip": (None, 1.1)}),
]


def same(found, expected):
    """Loss and gradients; there is something to compare."""
    torch.testing.assert_close(found[0], expected[0], **CLOSE)
    assert found[1].keys() == expected[1].keys()
    assert max(float(gradient.abs().max()) for gradient in expected[1].values()) > 1e-3
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, **CLOSE)


@pytest.mark.parametrize(("loss", "more"), CASES, ids=str)
def test_a_loss_and_its_gradient_are_trls(loss, more, batch, tiny, tmp_path):
    low, high = more.get("clip", (None, None))
    settings = tiny.group_settings(
        loss=loss, importance_level=more.get("level"), delta=more.get("delta"), beta=more.get("beta", 0.0),
        clip_low=low, clip_high=high, episodes=12, per_prompt=3, minibatches=2, epochs=2,
        sampling={"max_new_tokens": LONGEST},
    )  # fmt: skip
    level, (low, high) = settings.level_used(), settings.clips_used()
    old = batch.old[level]
    weights = batch.weights if more.get("weighed") else None
    trainer = trl_trainer(
        GRPOTrainer, GRPOConfig, tiny, batch.policy, tmp_path, epsilon=low or 0.2, epsilon_high=high or 0.2,
        loss_type="grpo" if loss == "gspo" else loss, importance_sampling_level=level, delta=more.get("delta"),
    )  # fmt: skip
    trainer.beta, trainer.args.steps_per_generation = settings.beta, 2
    inputs = inputs_of(batch) | {
        "old_per_token_logps": old[:6], "ref_per_token_logps": batch.ref[:6], "num_items_in_batch": batch.mask.sum(),
    }  # fmt: skip
    if weights is not None:
        trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
        inputs["importance_sampling_ratio"] = weights[:6]
    expected = gradients(batch.policy, trainer._compute_loss(batch.policy, inputs))
    *found, stats = ours(batch, settings, old=old, weights=weights)
    same(found, expected)
    if low and high:  # a bound that stops nothing is not compared
        for bound in ("clip_fraction_low", "clip_fraction_high"):
            assert sum(float(piece[bound]) for piece in stats) > 0, bound


@pytest.mark.parametrize("clip", [(0.2, 0.2), (0.05, 0.1)])
def test_rloos_loss_and_its_gradient_are_trls(clip, batch, tiny, tmp_path):
    trainer = trl_trainer(RLOOTrainer, RLOOConfig, tiny, batch.policy, tmp_path, epsilon=clip[0], epsilon_high=clip[1])
    old = batch.old["answer"]
    inputs = inputs_of(batch) | {"old_logps": torch.where(batch.mask, old, 0.0).sum(1)[:6]}
    expected = gradients(batch.policy, trainer._compute_loss(batch.policy, inputs))
    settings = tiny.group_settings(
        "rloo", clip_low=clip[0], clip_high=clip[1], episodes=12, per_prompt=3, minibatches=2, epochs=2,
        sampling={"max_new_tokens": LONGEST},
    )  # fmt: skip
    *found, _stats = ours(batch, settings, old=old)
    same(found, expected)


def test_every_named_loss_stands_in_the_table():
    assert {*get_args(GrpoLoss), "ppo", "rloo"} == OBJECTIVES.keys()
    assert LOSSES.keys() == set(get_args(GrpoLoss))


def test_a_weight_beyond_cispos_bound_still_has_a_gradient():
    """Ratio e² bounded to 5: the gradient is 5 × advantage, where a clip would leave none."""
    logprobs = torch.tensor([[-1.0]], requires_grad=True)
    terms = Terms(logprobs, torch.tensor([[-3.0]]), torch.tensor([[1.0]]), torch.tensor([[True]]))
    losses, stats = token_losses(OBJECTIVES["cispo"], terms, Options(clip_high=5.0))
    losses.sum().backward()
    assert logprobs.grad.item() == pytest.approx(-5.0)
    assert stats["clip_fraction_high"].item()
    losses, _ = token_losses(OBJECTIVES["cispo"], terms, Options(clip_high=10.0))
    assert losses.item() == pytest.approx(math.exp(2.0))


def test_what_is_masked_out_touches_nothing():
    """NaN in a loss's inputs where nothing is kept."""
    mask = torch.tensor([[True, True, False]])
    for name, objective in OBJECTIVES.items():
        logprobs = torch.tensor([[-1.0, -2.0, float("nan")]], requires_grad=True)
        nan = torch.tensor([[-1.1, -1.8, float("nan")]])
        terms = Terms(
            logprobs, nan, torch.tensor([[1.0, -1.0, float("nan")]]), mask, torch.tensor([[1.0, 0.9, float("nan")]])
        )
        losses, _stats = token_losses(objective, terms, Options(level="sequence" if name == "gspo" else "token"))
        counts = aggregation_weights(mask, objective.aggregation, step_tokens=2, longest=3)
        (losses * counts).sum().backward()
        assert logprobs.grad.isfinite().all(), name
        assert logprobs.grad[0, 2] == 0, name


def test_each_aggregation_by_hand():
    mask = torch.tensor([[True, True, True], [True, False, False]])

    def weights(how):
        return aggregation_weights(mask, how, step_tokens=8, longest=5).tolist()

    assert weights("tokens") == [[0.25] * 3, [0.25, 0, 0]]
    assert weights("step_tokens") == [[0.125] * 3, [0.125, 0, 0]]
    assert weights("answers") == [[pytest.approx(1 / 6)] * 3, [0.5, 0, 0]]
    assert weights("answer_sums") == [[0.5] * 3, [0.5, 0, 0]]
    assert weights("longest") == [[pytest.approx(0.1)] * 3, [pytest.approx(0.1), 0, 0]]
    with pytest.raises(ValueError, match="rows"):
        weights("rows")


def test_group_advantages_are_those_of_one_groups_arithmetic():
    """Of 1, 2 and 6 the others' means are 4, 3.5 and 1.5."""
    rewards = torch.tensor([1.0, 2.0, 6.0])
    assert leave_one_out_advantages(rewards, group_size=3).tolist() == [-3.0, -1.5, 4.5]
    # the leave-one-out advantage is n / (n - 1) times the distance from the group's mean (Kool et al. 2019)
    expected = group_advantages(rewards, group_size=3, scale="none") * 3 / 2
    torch.testing.assert_close(leave_one_out_advantages(rewards, group_size=3), expected)
    with pytest.raises(ValueError, match="at least 2"):
        leave_one_out_advantages(rewards, group_size=1)
    assert normalised(torch.tensor([1.0, 3.0])).tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5], abs=1e-3)
    two = torch.tensor([[0.0, 0.0], [1000.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    found = separately_normalised(two, torch.tensor([1.0, 1.0]), group_size=2)
    assert found[1].item() == pytest.approx(found[2].item(), abs=1e-3)  # the large one hides nothing
