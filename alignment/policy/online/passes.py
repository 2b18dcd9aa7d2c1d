"""What is known of a step's answers before its update, from one pass of the policy and one of the reference."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from alignment.distributed.workers import Team
from alignment.models.cpu_attention import quick_backward
from alignment.policy.online.actor_critic import Actor, Reference, base_of, reference_logprobs
from alignment.policy.online.batch import Episode, collate, dealt


@dataclass(frozen=True, slots=True)
class TokenFigures:
    """(N, R) of each response token, 0 where ``mask`` is False: under the policy, and under the reference."""

    mask: torch.Tensor
    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    values: torch.Tensor
    entropy: torch.Tensor


@torch.no_grad()
def pass_over(
    episodes: Sequence[Episode],
    actor: Actor,
    reference: Reference | None,
    minibatches: Sequence[Sequence[int]],
    *,
    size: int,
    team: Team,
    policy: bool = True,
) -> TokenFigures:
    """Each worker of ``team`` passes over some of the episodes, ``size`` at a time, and all come to know all of it.

    What the update's ``minibatches`` pass over together is passed over together here: rounding is then the same on
    both sides, and the first ratios are 1. Nothing is known of the reference without one, and nothing of the policy
    unless ``policy``.
    """
    device = actor.device
    mask = collate(episodes, device).mask
    logprobs, ref_logprobs, values, entropy = known = [torch.zeros(mask.shape, device=device) for _ in range(4)]
    parts = [dealt(indices, episodes, size, team, alike=actor.sharded) for indices in minibatches]
    own, idle = ([rows for part in parts for rows in part[which]] for which in (0, 1))
    pieces = [(rows, collate([episodes[row] for row in rows], device)) for rows in own + idle]
    if policy:
        with quick_backward(*actor.trunks()):  # as in training, or rounding alone would move the first ratios
            passed = [actor(tokens) for _rows, tokens in pieces]
        for (rows, tokens), outputs in zip(pieces[: len(own)], passed, strict=False):
            width = tokens.labels.shape[1]
            logprobs[rows, :width] = outputs.logprobs
            values[rows, :width] = outputs.values
            entropy[rows, :width] = outputs.entropy
    if reference is not None:
        with reference() as model, quick_backward(base_of(model)):
            references = [reference_logprobs(model, tokens, temperature=actor.temperature) for _rows, tokens in pieces]
        for (rows, tokens), found in zip(pieces[: len(own)], references, strict=False):
            ref_logprobs[rows, : tokens.labels.shape[1]] = found
    team.add(known)
    return TokenFigures(mask, logprobs, ref_logprobs, values, entropy)
