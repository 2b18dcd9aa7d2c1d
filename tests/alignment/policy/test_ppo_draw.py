"""Answers drawn with weights that are elsewhere: which version they are of, and what is refused."""

import pytest
import torch

from alignment.errors import StageError


def build(tiny, *, deaf=False, checkpoints=None, **options):
    policy = tiny.policy()
    settings = tiny.settings(**({"steps": 4, "learning_rate": 1e-2, "checkpoint_every": 1} | options))
    return tiny.trainer(settings, policy=policy, engine=tiny.apart(policy, deaf=deaf), checkpoints=checkpoints)


def versions(trainer, **options):
    """The versions of each step's answers, and how far each step's sampling was from the policy."""
    seen, gaps = [], []

    def on_step(_step, metrics, experience):
        seen.append({episode.completion.version for episode in experience.episodes})
        gaps.append(metrics["sampling_gap"])

    trainer.train(on_step=on_step, **options)
    return seen, gaps


AHEAD = {"max_staleness": 1, "rollout_workers": 1, "importance_cap": 2.0}


def test_every_step_samples_with_the_newest_weights(tiny):
    seen, gaps = versions(build(tiny))
    assert seen == [{0}, {1}, {2}, {3}]
    assert max(gaps) < 1e-4
    _seen, stale = versions(build(tiny, deaf=True, max_sampling_gap=9.0))  # if weights did not arrive
    assert stale[0] < 1e-4 < 1e-2 < min(stale[1:])


def test_ahead_means_one_version_behind(tiny):
    seen, gaps = versions(build(tiny, **AHEAD))
    assert seen == [{0}, {0}, {1}, {2}]
    assert gaps[0] < 1e-4 < min(gaps[1:])


def test_staler_answers_are_refused(tiny):
    trainer = build(tiny)
    trainer.engine.push = lambda _policy, _version: setattr(trainer.engine, "version", 0)  # says so, at least
    with pytest.raises(StageError, match="version 0, and the policy is at version 1: more than max_staleness=0"):
        trainer.train()
    trainer = build(tiny, **AHEAD)
    trainer.engine.push = lambda _policy, _version: setattr(trainer.engine, "version", 0)
    with pytest.raises(StageError, match="version 0, and the policy is at version 2: more than max_staleness=1"):
        trainer.train()


def test_what_was_drawn_ahead_is_in_the_checkpoint(tiny, tmp_path):
    torch.set_num_threads(1)
    whole = build(tiny, checkpoints=tmp_path / "whole", **AHEAD)
    whole.train()
    build(tiny, checkpoints=tmp_path / "parts", **AHEAD).train(stop_after=2)
    again = build(tiny, checkpoints=tmp_path / "parts", **AHEAD)
    seen, _gaps = versions(again)
    assert seen == [{1}, {2}]
    for name, parameter in whole.actor.trainable().items():
        assert torch.equal(parameter, again.actor.trainable()[name]), name
