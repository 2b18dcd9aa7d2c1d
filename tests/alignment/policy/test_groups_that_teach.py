"""Groups without spread: drawn again from further prompts, within a bound, and left out where they stay flat."""

import pytest
import torch


def evens(episode):
    """1 where an answer begins with an even token, as half of a uniform policy's do: many groups of two are flat."""
    return float(episode.completion.tokens[0] % 2 == 0)


def train(tiny, score=evens, **options):
    settings = tiny.group_settings(**{"steps": 3, "episodes": 16, "per_prompt": 2, "learning_rate": 1e-4} | options)
    trainer, seen = tiny.group_trainer(settings, score=score), []
    trainer.train(on_step=lambda _step, metrics, experience: seen.append((metrics, experience)))
    return trainer, seen


def spread(experience):
    totals = experience.totals.view(-1, 2)
    return totals[:, 0] != totals[:, 1]


def test_flat_groups_are_drawn_again_until_none_is_flat(tiny):
    """Of a fair coin a group of two is flat every other time: of eight groups, after ten attempts hardly ever one."""
    _trainer, before = train(tiny)
    assert any(not spread(experience).all() for _metrics, experience in before)
    trainer, seen = train(tiny, redraws=10)
    for metrics, experience in seen:
        assert spread(experience).all()
        assert metrics["groups_without_spread"] == 0
        assert torch.equal(experience.loss_mask, experience.mask)
        expected = [evens(episode) for episode in experience.episodes]
        assert experience.totals.tolist() == expected  # scores moved with their answers
        prompts = [episode.prompt.id for episode in experience.episodes]
        assert prompts[::2] == prompts[1::2]  # groups are whole
    assert sum(metrics["groups_redrawn"] for metrics, _experience in seen) > 0
    drawn = sum(int(experience.mask.sum()) for _metrics, experience in seen)
    assert trainer.state.tokens_sampled > drawn  # what was drawn for nothing was drawn
    again, _seen = train(tiny, redraws=10)
    for name, weight in trainer.actor.trainable().items():
        assert torch.equal(weight, again.actor.trainable()[name])


def test_what_stays_flat_is_left_out_of_the_loss(tiny):
    trainer, seen = train(tiny, redraws=0)
    flat = [~spread(experience) for _metrics, experience in seen]
    assert any(rows.any() for rows in flat)
    for rows, (_metrics, experience) in zip(flat, seen, strict=True):
        kept = experience.loss_mask.any(dim=1).view(-1, 2)
        assert torch.equal(kept, ~rows[:, None].expand(-1, 2))
    start = tiny.policy()
    trainer, seen = train(tiny, score=lambda _episode: 1.0, redraws=2, missing_eos_penalty=1.0)
    assert [metrics["groups_redrawn"] for metrics, _experience in seen] == [16.0] * 3  # eight groups, twice
    for name, weight in start.named_parameters():
        assert torch.equal(weight, trainer.actor.policy.get_parameter(name)), name


def test_the_outcome_counts_and_not_the_missing_end(tiny):
    """All answers have one reward, and some lose for a missing end: with the penalty alone nothing is to be learned."""
    _trainer, seen = train(tiny, score=lambda _episode: 1.0, missing_eos_penalty=1.0)
    finished = torch.tensor([episode.completion.finished for episode in seen[0][1].episodes])
    assert 0 < finished.sum() < 16
    assert seen[0][1].advantages.abs().max() > 0  # as it is without redraws
    _trainer, seen = train(tiny, score=lambda _episode: 1.0, missing_eos_penalty=1.0, redraws=0)
    assert not seen[0][1].loss_mask.any()
    assert seen[0][0]["loss"] == pytest.approx(0.0)
