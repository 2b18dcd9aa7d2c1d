"""What a step learns from episodes of several turns: nothing of what the policy did not say."""

import pytest
import torch

from alignment.distributed.workers import ALONE
from alignment.policy.grpo.experience import make_experience
from alignment.policy.grpo.update import consecutive, update
from alignment.policy.online.batch import Episode
from alignment.records import Message, Prompt
from alignment.rollouts.engine import Completion

ASKED = Prompt(id="1", messages=(Message(role="user", content="w5"),))
# (tokens after the prompt, which of them were drawn, reward)
PLAYED = [
    ((6, 1, 20, 21, 22, 7, 8, 1), (True, True, False, False, False, True, True, True), 1.0),
    ((9, 1, 20, 23, 22, 1), (True, True, False, False, False, True), 0.0),
    ((4, 1), (True, True), 0.5),
    ((11, 12, 13, 1, 20, 22, 14), (True, True, True, True, False, False, True), -1.0),
]
PROMPT_IDS = (5, 17, 3)


def episodes(played=PLAYED):
    return [
        Episode(ASKED, PROMPT_IDS, Completion(tokens, "", True), drawn, reward=reward)
        for tokens, drawn, reward in played
    ]


def gradient(tiny, settings, played=PLAYED):
    """A step's gradient, before it is clipped, and its loss."""
    trainer = tiny.group_trainer(settings, policy=tiny.policy())
    trained, totals = episodes(played), torch.tensor([reward for _tokens, _drawn, reward in played])
    experience = make_experience(
        trained, totals, {"nines": totals.tolist()}, [1.0], trainer.actor, trainer.reference, settings,
        deviation=1.0, minibatches=consecutive(settings), team=ALONE,
    )  # fmt: skip
    kept = []
    trainer.optimizer.max_grad_norm = 1e9
    update(
        experience, trainer.actor, trainer.optimizer, settings, cap=None, step=0, team=ALONE,
        before_step=lambda: kept.extend(part.clone().flatten() for part in trainer.optimizer.gradients()),
    )  # fmt: skip
    return torch.cat(kept), experience


def by_hand(tiny, weight_of):
    """The gradient of -Σ weight · advantage · log-probability over what was drawn, row by row without padding."""
    policy = tiny.policy().eval()
    rewards = torch.tensor([reward for _tokens, _drawn, reward in PLAYED])
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    loss = torch.zeros(())
    for (tokens, drawn, _reward), advantage in zip(PLAYED, advantages, strict=True):
        ids = torch.tensor([PROMPT_IDS + tokens])
        logprobs = policy(ids).logits[0].log_softmax(-1)
        for place, (token, own) in enumerate(zip(tokens, drawn, strict=True)):
            if own:
                loss = loss - weight_of(drawn) * advantage * logprobs[len(PROMPT_IDS) + place - 1, token]
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])


@pytest.mark.parametrize(
    ("options", "weight_of"),
    [
        ({"loss": "dapo"}, lambda drawn: 1 / (5 + 3 + 2 + 5)),  # a mean over the tokens that were drawn
        ({"loss": "grpo"}, lambda drawn: 1 / (4 * sum(drawn))),  # over each episode's, then over episodes
        ({"loss": "dr_grpo"}, lambda drawn: 1 / (4 * 40)),  # over the longest episode
    ],
    ids=lambda value: value["loss"] if isinstance(value, dict) else "",
)
def test_the_gradient_is_that_of_what_was_drawn(options, weight_of, tiny):
    environment = {"kind": "calculator", "max_tokens": 40}
    settings = tiny.group_settings(episodes=4, steps=1, batch_size=3, environment=environment, **options)
    found, experience = gradient(tiny, settings)
    expected = by_hand(tiny, weight_of)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().max() > 1e-3  # there is something to be equal to
    assert experience.mask.sum(dim=1).tolist() == [5, 3, 2, 5]
    assert (experience.advantages[~experience.mask] == 0).all()


def test_what_an_environment_says_is_context_and_no_target(tiny):
    """Another observation changes the gradient, since later answers stand behind it; none of its tokens is a target:
    an observation behind the last answer, which nothing follows, changes nothing at all."""
    settings = tiny.group_settings(episodes=4, steps=1, batch_size=4)
    found, _experience = gradient(tiny, settings)
    behind = [((*tokens, 25, 26), (*drawn, False, False), reward) for tokens, drawn, reward in PLAYED]
    assert torch.allclose(gradient(tiny, settings, behind)[0], found, atol=1e-6)
    other = [(tuple(24 if token == 22 else token for token in tokens), *rest) for tokens, *rest in PLAYED]
    assert not torch.allclose(gradient(tiny, settings, other)[0], found, atol=1e-4)
