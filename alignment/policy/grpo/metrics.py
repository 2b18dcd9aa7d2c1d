"""What GRPO and RLOO say while they train: figures, tables of answers, and alarms for the ways they go wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

from alignment.policy.alarms import WINDOW, alarms
from alignment.policy.grpo.experience import GroupExperience, without_spread
from alignment.policy.losses import kl_estimate, masked_mean
from alignment.policy.online.off_policy import gap_metrics
from alignment.recipe.stages.grpo import GrpoStage, RlooStage

SHOWN = 8  # answers in each sample table


def group_metrics(experience: GroupExperience, settings: GrpoStage | RlooStage) -> dict[str, float]:
    """Figures of one step's answers under the policy before its update.

    ``reward``, its deviation and the groups without spread are of what the rewards gave, without what answers lost for
    their missing ends (``reward.missing_end``, in deviations of the rewards). ``turns`` are answers in an episode.
    With a reference ``kl_per_token`` is in
    nats, k3 for GRPO, which has it in the loss, and k1 for RLOO, which has it in the reward; ``kl`` is the same per
    answer. ``entropy`` is nats per token, ``eos_rate`` the share that ended by itself.
    """
    mask = experience.mask
    lengths = mask.sum(dim=1).float()
    metrics = {
        "reward": experience.totals.mean(),
        "reward_deviation": experience.totals.std(),
        "groups_without_spread": without_spread(experience.totals, settings.per_prompt).float().mean(),
        "entropy": masked_mean(experience.entropy, mask),
        "length": lengths.mean(),
        "length_max": lengths.max(),
    }
    if settings.missing_eos_penalty:
        metrics["reward.missing_end"] = experience.lost.mean()
    if experience.ref_logprobs is not None:
        estimator = "k1" if settings.kind == "rloo" else "k3"
        kl = kl_estimate(experience.logprobs, experience.ref_logprobs, estimator=estimator)  # type: ignore[arg-type]
        metrics["kl_per_token"] = masked_mean(kl, experience.loss_mask)
        metrics["kl"] = metrics["kl_per_token"] * metrics["length"]
    numbers = {name: float(value) for name, value in metrics.items()}
    finished = sum(episode.completion.finished for episode in experience.episodes)
    if settings.environment is not None:
        answers = [sum(turn.role == "assistant" for turn in episode.turns) for episode in experience.episodes]
        numbers["turns"] = sum(answers) / len(answers)
    numbers["eos_rate"] = finished / len(experience.episodes)
    return numbers | gap_metrics(experience.logprobs, experience.sampling_logprobs, mask)


def sample_table(experience: GroupExperience, scores: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """The first ``SHOWN`` answers of a step with their rewards, for the report."""
    return [
        {
            "prompt": episode.prompt.messages[-1].content,
            "answer": episode.completion.text,
            "score": float(experience.totals[row]),
            "rewards": {name: values[row] for name, values in scores.items()},
            "tokens": episode.drawn_tokens,
            "finished": episode.completion.finished,
            **({"turns": [turn.model_dump() for turn in episode.turns]} if episode.turns else {}),
        }
        for row, episode in enumerate(experience.episodes[:SHOWN])
    ]


def group_alarms(history: Sequence[Mapping[str, float]]) -> list[str]:
    """PPO's alarms, and one of their own: where all answers to a prompt score the same, nothing is learned.

    Without a reference there is no KL to run away.
    """
    found = alarms([{"kl": 0.0, **step} for step in history])
    recent = history[-WINDOW:]
    if len(recent) == WINDOW and all(step["groups_without_spread"] >= 1 for step in recent):
        found.append(
            f"no_signal: all answers to each prompt have one reward ({recent[-1]['reward']:.3g} on average); "
            "give easier or harder prompts, or a reward with more steps"
        )
    return found
