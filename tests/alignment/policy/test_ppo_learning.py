"""PPO learns: three tasks with a known true reward, three seeds each, from a random tiny model.

Produce a token: the share of the answer that is one token. Sort digits: the share of places that hold the prompt's
digits in order, which only a policy that reads the prompt gets right. Follow a format: open, fill, close, stop.
"""

import pytest
import torch

from alignment.records import Message, Prompt, Sampling

pytestmark = pytest.mark.slow
TARGET, OPEN, CLOSE = 9, 20, 21
DIGITS = range(10, 16)


def produce_a_token(episode):
    return episode.completion.tokens.count(TARGET) / 6


def sort_digits(episode):
    """The share of places of the answer that hold the prompt's digits in order."""
    wanted = sorted(token for token in episode.prompt_ids if token in DIGITS)
    answer = list(episode.completion.tokens)[: len(wanted)]
    return sum(a == b for a, b in zip(answer, wanted, strict=False)) / len(wanted)


def follow_a_format(episode):
    """A third each for opening first, closing after two to four other tokens, and stopping right then."""
    tokens = list(episode.completion.tokens)
    opened = tokens[0] == OPEN
    close = tokens.index(CLOSE) if CLOSE in tokens else 0
    closed = opened and 3 <= close <= 5
    stopped = closed and episode.completion.finished and len(tokens) == close + 2
    return (opened + closed + stopped) / 3


def digit_prompts():
    generator = torch.Generator().manual_seed(0)
    prompts = []
    for number in range(64):
        ids = (*tuple(torch.randint(DIGITS.start, DIGITS.stop, (2,), generator=generator).tolist()), 7)
        prompts.append((Prompt(id=str(number), messages=(Message(role="user", content=str(ids)),)), ids))
    return prompts


TASKS = {  # reward, tokens, steps, learning rate, its schedule, the mean score that the last steps must reach
    "produce a token": (produce_a_token, 6, 40, 2e-3, "constant", 0.9),
    "sort digits": (sort_digits, 3, 160, 1e-3, "constant", 0.7),  # 0.31 without reading the prompt
    "follow a format": (follow_a_format, 8, 100, 1e-3, "linear", 0.8),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("task", TASKS)
def test_ppo_learns(task, seed, tiny):
    reward, tokens, steps, rate, schedule, wanted = TASKS[task]
    settings = tiny.settings(steps=steps, episodes=64, epochs=4, minibatches=2, batch_size=64, learning_rate=rate,
                             critic_learning_rate=rate, kl_coefficient=0.0, missing_eos_penalty=0.0,
                             sampling=Sampling(max_new_tokens=tokens), schedule=schedule)  # fmt: skip
    trainer = tiny.trainer(
        settings,
        policy=tiny.policy(seed),
        reward=lambda episodes: [reward(episode) for episode in episodes],
        prompts=digit_prompts() if task == "sort digits" else None,
        seed=seed,
    )
    scores = [step["score"] for step in trainer.train().history]
    assert sum(scores[-5:]) / 5 >= wanted
    assert sum(scores[:2]) / 2 < wanted / 2
