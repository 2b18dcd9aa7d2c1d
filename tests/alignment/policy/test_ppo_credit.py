"""What the default advantages say: the score of an answer, and not where a token stands or how the reward is scaled.

The scores are random numbers that no answer has earned, so nothing but the score itself may be in the advantages. All
settings are the stage's defaults; the trainer makes a real step on a tiny model.
"""

import pytest
import torch

from alignment.recipe.stages.ppo import PpoStage

EPISODES = 64


def reward_of(mean, deviation, seed=0):
    """A score for each answer, whatever it says: normal, with exactly this mean and deviation in the first step."""
    generator = torch.Generator().manual_seed(seed)

    def reward(episodes):
        scores = torch.randn(len(episodes), generator=generator, dtype=torch.float64)
        scores = (scores - scores.mean()) / scores.std(correction=0)
        return (mean + deviation * scores).tolist()

    return reward


def first_step(tiny, mean, deviation, *, longest, **options):
    """The experience and the metrics of a first step with the default settings."""
    settings = PpoStage(
        kind="ppo", model="base", reward="reward", steps=1, episodes=EPISODES, batch_size=16,
        sampling={"max_new_tokens": longest}, lora=None, **options,
    )  # fmt: skip
    made = {}
    trainer = tiny.trainer(settings, reward=reward_of(mean, deviation), policy=tiny.policy(max_position_embeddings=128))
    trainer.train(on_step=lambda _step, metrics, experience: made.update(metrics=metrics, experience=experience))
    return made["experience"], made["metrics"]


def explained(advantages, mask, by):
    """The share of the kept advantages' variance that a line in ``by`` (B, T) explains."""
    return torch.corrcoef(torch.stack([advantages[mask], by[mask]]).double())[0, 1].item() ** 2


@pytest.mark.parametrize("longest", [16, 64])
@pytest.mark.parametrize("deviation", [0.04, 1.0])
@pytest.mark.parametrize("mean", [-6.0, 0.0, 6.0])
def test_the_score_explains_the_first_advantages(tiny, mean, deviation, longest):
    experience, _metrics = first_step(tiny, mean, deviation, longest=longest)
    mask, advantages = experience.mask, experience.advantages
    lengths = mask.sum(dim=1)
    finished = torch.tensor([episode.completion.finished for episode in experience.episodes])
    assert 0.1 < finished.float().mean() < 0.9  # answers of many lengths, some of them cut off
    scores = reward_of(mean, deviation)(experience.episodes)
    by_score = torch.tensor(scores)[:, None].expand(mask.shape)
    from_end = (lengths[:, None] - torch.arange(mask.shape[1])).float()
    assert explained(advantages, mask, by_score) >= 0.7
    assert explained(advantages, mask, from_end) < 0.25  # the missing end's penalty is there, and is meant
    spread = advantages[mask].std(correction=0)
    last = advantages[torch.arange(EPISODES), lengths - 1]
    assert abs(last.mean() / spread) < 0.1
    assert spread == pytest.approx(1.0, abs=0.1)


def test_the_advantages_are_the_same_for_every_offset_and_scale(tiny):
    plain, _ = first_step(tiny, 0.0, 1.0, longest=16)
    for mean, deviation in ((-6.0, 0.04), (6.0, 1.0), (1000.0, 50.0)):
        other, _ = first_step(tiny, mean, deviation, longest=16)
        torch.testing.assert_close(other.advantages, plain.advantages, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(other.returns, plain.returns, atol=1e-3, rtol=1e-3)
