"""Making experience: sample, score, compare with the reference, and turn it into rewards and advantages."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import torch

from alignment.distributed.workers import ALONE, LostWorkerError, Team
from alignment.errors import StageError
from alignment.models.cpu_attention import quick_backward
from alignment.policy.advantages import generalized_advantage_estimation, unit_variance, whiten_by_answer
from alignment.policy.losses import importance_weights, kl_estimate
from alignment.policy.ppo.actor_critic import ActorCritic, Reference, base_of, reference_logprobs
from alignment.policy.ppo.batch import Episode, Experience, collate, dealt
from alignment.policy.ppo.score_scale import ScoreScale
from alignment.recipe.stages.ppo import PpoStage
from alignment.rollouts.engine import Engine, Groups, PromptIds
from alignment.rollouts.seeds import derived_seed

Reward: TypeAlias = Callable[[Sequence[Episode]], Sequence[float]]
"""Scores episodes, in their order; one finite number each."""


def choose_prompts(prompts: Sequence[PromptIds], first: int, count: int, seed: int) -> list[PromptIds]:
    """``count`` prompts from position ``first`` of an endless stream: every pass over the data has its own order."""
    chosen = []
    for position in range(first, first + count):
        turn, place = divmod(position, len(prompts))
        generator = torch.Generator().manual_seed(derived_seed(seed, "order", turn))
        chosen.append(prompts[int(torch.randperm(len(prompts), generator=generator)[place])])
    return chosen


def asked(prompts: Sequence[PromptIds], settings: PpoStage, *, seed: int, step: int) -> dict[str, Any]:
    """What an engine is asked for a step's answers: a draw depends on the seed, the step and its place alone."""
    seeds = [derived_seed(seed, "answer", step, index) for index in range(len(prompts) * settings.per_prompt)]
    ids = [ids for _prompt, ids in prompts]
    return {"prompts": ids, "per_prompt": settings.per_prompt, "sampling": settings.sampling, "seeds": seeds}


def episodes_of(prompts: Sequence[PromptIds], groups: Groups) -> list[Episode]:
    """The answers as episodes. Raises StageError where the engine gave one without tokens."""
    episodes = [
        Episode(prompt, ids, completion)
        for (prompt, ids), group in zip(prompts, groups, strict=True)
        for completion in group
    ]
    if not all(episode.completion.tokens for episode in episodes):
        raise StageError("the engine returned an answer without tokens")
    return episodes


def sample(engine: Engine, prompts: Sequence[PromptIds], settings: PpoStage, *, seed: int, step: int) -> list[Episode]:
    """``settings.per_prompt`` episodes for each prompt. Raises StageError where the engine gives no tokens at all."""
    return episodes_of(prompts, engine.generate(**asked(prompts, settings, seed=seed, step=step)))


def refuse_stale(episodes: Sequence[Episode], version: int, bound: int) -> None:
    """Raises StageError where an answer was drawn with weights more than ``bound`` updates behind ``version``."""
    for episode in episodes:
        drawn = episode.completion.version
        if drawn is not None and not 0 <= version - drawn <= bound:
            raise StageError(
                f"an answer was drawn with weights of version {drawn}, and the policy is at version {version}: "
                f"more than max_staleness={bound} behind"
            )


def checked_scores(reward: Reward, episodes: Sequence[Episode]) -> torch.Tensor:
    """(N,) float32 scores. Raises StageError, naming the prompt and the answer, where the reward fails at its task."""
    try:
        scores = [float(score) for score in reward(episodes)]
    except LostWorkerError:
        raise
    except Exception as error:
        raise StageError(f"the reward failed with {type(error).__name__}: {error}; {_shown(episodes[0])}") from error
    if len(scores) != len(episodes):
        raise StageError(f"the reward gave {len(scores)} scores for {len(episodes)} answers; {_shown(episodes[0])}")
    for episode, score in zip(episodes, scores, strict=True):
        if not math.isfinite(score):
            raise StageError(f"the reward gave {score}; {_shown(episode)}")
    return torch.tensor(scores, dtype=torch.float32)


def _shown(episode: Episode) -> str:
    return f"prompt {episode.prompt.messages[-1].content!r}, answer {episode.completion.text!r}"


@torch.no_grad()
def make_experience(
    episodes: list[Episode],
    scores: torch.Tensor,
    actor: ActorCritic,
    reference: Reference,
    settings: PpoStage,
    *,
    kl_coefficient: float,
    team: Team = ALONE,
    scale: ScoreScale | None = None,
    minibatches: Sequence[Sequence[int]] | None = None,
) -> Experience:
    """Everything the update needs, from one pass of the policy (with its values) and one of the reference.

    Each worker of ``team`` makes the passes for some of the episodes; what comes of all of them, whitening included,
    is then the same in every worker.

    Reward of a token (Ouyang et al. 2022, eq. 2; Stiennon et al. 2020): minus the coefficient times its estimated KL,
    and on the answer's last real token the score. Where ``settings.kl_in`` is "loss", the score alone.

    ``scores`` (N,) are the reward's; with ``scale`` they are learned from in its units, less its mean. ``minibatches``
    are the update's, None one of all episodes: what is passed over together there is so here.
    """
    device = actor.value_head.weight.device
    mask = collate(episodes, device).mask
    known = [torch.zeros(mask.shape, device=device) for _ in range(4)]
    _pass_over(episodes, actor, reference, team, minibatches or [range(len(episodes))], settings.batch_size, known)
    team.add(known)
    logprobs, ref_logprobs, values, entropy = known
    penalised, credited = (tensor.to(device) for tensor in credit(episodes, scores, settings, scale))
    in_reward = kl_coefficient if settings.kl_in == "reward" else 0.0
    kl = kl_estimate(logprobs, ref_logprobs, estimator=settings.kl_estimator)
    rewards = token_rewards(credited, kl, mask, in_reward)
    if settings.whiten_rewards:
        rewards = unit_variance(rewards, mask)
    advantages, returns = generalized_advantage_estimation(
        rewards, values, mask, gamma=settings.gamma, lam=settings.lam
    )
    if settings.whiten_advantages:
        advantages = whiten_by_answer(advantages, mask)
    sampled = _sampling_logprobs(episodes, mask)
    weights = None
    if settings.importance_cap is not None:
        if sampled is None:
            raise StageError("importance_cap is set, but the engine does not say how likely its tokens were")
        weights = importance_weights(logprobs, sampled, cap=settings.importance_cap)
    experience = Experience(
        episodes, penalised, mask, logprobs, ref_logprobs, sampled, values, entropy, advantages, returns,
        raw_scores=scores.to(device), weights=weights, kl_loss_coefficient=kl_coefficient - in_reward,
    )  # fmt: skip
    if scale is not None:
        experience.score_mean, experience.score_unit = scale.mean, scale.deviation
    return experience


def credit(
    episodes: Sequence[Episode], scores: torch.Tensor, settings: PpoStage, scale: ScoreScale | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the reward's ``scores`` (N,) are learned as: in the units of ``scale``, less the penalty for a missing end;
    and what the last token of each answer is rewarded by: that, less the prompt's baseline where there is one."""
    scores = scores if scale is None else scale.normalised(scores)
    cut = torch.tensor([not episode.completion.finished for episode in episodes], device=scores.device)
    penalised = scores - settings.missing_eos_penalty * cut
    if settings.baseline == "none":
        return penalised, penalised
    return penalised, beyond_others(penalised, [episode.prompt_ids for episode in episodes])


def beyond_others(scores: torch.Tensor, prompts: Sequence[Hashable]) -> torch.Tensor:
    """Scores (B,) minus the mean score of the other answers to each one's prompt (Kool et al. 2019, eq. 4).

    The answer's own score is not in its baseline, which therefore does not bias the gradient. An answer without
    others keeps its score.
    """
    same = torch.tensor([[one == other for other in prompts] for one in prompts], device=scores.device)
    others = same & ~torch.eye(len(prompts), dtype=torch.bool, device=scores.device)
    return scores - (others * scores).sum(dim=1) / others.sum(dim=1).clamp(min=1)


def _pass_over(
    episodes: Sequence[Episode],
    actor: ActorCritic,
    reference: Reference,
    team: Team,
    minibatches: Sequence[Sequence[int]],
    size: int,
    known: Sequence[torch.Tensor],
) -> None:
    """Fills this worker's rows of ``known``: log-probabilities, the reference's, values and entropies, each (N, R)."""
    logprobs, ref_logprobs, values, entropy = known
    parts = [dealt(indices, episodes, size, team, alike=actor.sharded) for indices in minibatches]
    own, idle = ([rows for part in parts for rows in part[which]] for which in (0, 1))
    pieces = [(rows, collate([episodes[row] for row in rows], values.device)) for rows in own + idle]
    with quick_backward(*actor.trunks()):  # as in training, or rounding alone would move the first ratios
        passed = [actor(tokens) for _rows, tokens in pieces]
    with reference() as model, quick_backward(base_of(model)):
        references = [reference_logprobs(model, tokens, temperature=actor.temperature) for _rows, tokens in pieces]
    for (rows, tokens), outputs, ref in zip(pieces[: len(own)], passed, references, strict=False):
        width = tokens.labels.shape[1]
        logprobs[rows, :width] = outputs.logprobs
        values[rows, :width] = outputs.values
        entropy[rows, :width] = outputs.entropy
        ref_logprobs[rows, :width] = ref


def token_rewards(scores: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, kl_coefficient: float) -> torch.Tensor:
    """(B, R) rewards from scores (B,), per-token KL (B, R) and a right-padding mask (B, R)."""
    rewards = torch.where(mask, -kl_coefficient * kl, 0.0)
    last = mask.sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def _sampling_logprobs(episodes: Sequence[Episode], mask: torch.Tensor) -> torch.Tensor | None:
    known = [episode.completion.logprobs for episode in episodes]
    rows = [logprobs for logprobs in known if logprobs is not None]
    if len(rows) < len(known):
        return None
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return padded.to(mask.device)
