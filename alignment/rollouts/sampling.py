"""From logits to tokens: truncation and penalties in the order and with the meaning of transformers, and seeded draws.

Every completion owns a stream of uniform numbers, made from its seed alone, and the inverse of the cumulative
distribution turns one number into one token. So a draw depends on the completion's seed and its own logits, never on
what else is in the batch; and it costs one random number per token instead of one per vocabulary entry.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from alignment.errors import NotFiniteError
from alignment.records import Sampling

NOT_FINITE = "the model's logits are not finite numbers, and no token can be drawn from them"
BLOCK = 256  # vocabulary entries summed together by `inverse_cdf`
NUCLEUS = 512  # candidates tried before top-p sorts a whole vocabulary


def processors(sampling: Sampling) -> LogitsProcessorList:
    """The processors of ``sampling``, in the order in which `model.generate` applies them.

    They are called as ``(input_ids (B, T), scores (B, V)) -> scores (B, V)``; ``input_ids`` matter to the repetition
    penalty alone.
    """
    chain = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature == 0:
        return chain  # greedy: truncation cannot change the best token
    if sampling.temperature != 1.0:
        chain.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        chain.append(TopP(sampling.top_p))
    if sampling.min_p > 0.0:
        chain.append(MinPLogitsWarper(sampling.min_p))
    return chain


class TopP(TopPLogitsWarper):  # type: ignore[misc]
    """Nucleus truncation (Holtzman et al. 2020) that sorts a whole vocabulary only where it must.

    The nucleus of a trained model is small: nearly always it lies within the ``NUCLEUS`` best candidates, and then
    their cumulative probability alone says where to cut. Sorting 64 × 49,152 scores takes 100 ms on two cores, as long
    as the model's own step; this takes 5.
    """

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if scores.shape[-1] <= NUCLEUS:
            return self._sorted(input_ids, scores)
        best = scores.topk(NUCLEUS, dim=-1).values
        probs = (best - scores.logsumexp(-1, keepdim=True)).exp()
        cumulative = probs.cumsum(-1)
        kept = (cumulative - probs < self.top_p).sum(-1, keepdim=True)  # the token that crosses top_p is kept
        cut = best.gather(-1, kept - 1)
        kept_scores = scores.masked_fill(scores < cut, self.filter_value)
        wide = (cumulative[:, -1] < self.top_p).nonzero().squeeze(-1)
        if len(wide):
            kept_scores[wide] = self._sorted(input_ids[wide], scores[wide])
        return kept_scores

    def _sorted(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        kept_scores: torch.Tensor = super().__call__(input_ids, scores)
        return kept_scores


def choose(
    process: LogitsProcessorList, ids: torch.Tensor, logits: torch.Tensor, uniform: torch.Tensor, *, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """ids (B, T), logits (B, V) float32, uniform (B,) → the rows' next tokens (B,) int64, and their log-probabilities.

    Raises NotFiniteError where the logits give no probabilities.
    """
    scores = process(ids, logits)
    greedy = temperature == 0
    raw = logits if greedy else logits / temperature
    total = raw.logsumexp(-1)  # NaN or infinite where any logit is NaN, any is +∞, or all are -∞
    if not torch.isfinite(total).all():
        raise NotFiniteError(NOT_FINITE)
    tokens = scores.argmax(-1) if greedy else inverse_cdf(scores, uniform)
    return tokens, raw.gather(-1, tokens[:, None]).squeeze(-1) - total


def uniforms(seeds: Sequence[int], count: int) -> torch.Tensor:
    """One row of ``count`` uniform numbers in [0, 1) per seed: (len(seeds), count), float64, on the CPU."""
    rows = torch.empty(len(seeds), count, dtype=torch.float64)
    generator = torch.Generator()
    for row, seed in zip(rows, seeds, strict=True):
        torch.rand(count, dtype=torch.float64, generator=generator.manual_seed(seed), out=row)
    return rows


def inverse_cdf(scores: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The token at which each row's cumulative probability passes ``uniform``.

    ``scores`` (B, V) are unnormalised log-probabilities, -inf for what may not be drawn; ``uniform`` (B,) lies in
    [0, 1). Returns (B,) int64. Two levels, blocks and then entries of one block, keep the sums exact enough for the
    rarest tokens and touch the vocabulary once.
    """
    weights = (scores - scores.amax(-1, keepdim=True)).exp_()
    weights = F.pad(weights, (0, -weights.shape[-1] % BLOCK))
    weights = weights.view(len(weights), -1, BLOCK)
    blocks = weights.sum(-1).double()
    target = uniform.to(blocks) * blocks.sum(-1)
    block, rest = _crossing(blocks, target)
    inner = weights[torch.arange(len(block), device=block.device), block].double()
    entry, _ = _crossing(inner, rest)
    return block * BLOCK + entry


def _crossing(weights: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first index whose cumulative weight exceeds ``target`` (never one of weight 0), and what is left of it."""
    cumulative = weights.cumsum(-1)
    last = (cumulative < cumulative[:, -1:]).sum(-1)  # rounding must not push a draw past the last positive weight
    index = torch.searchsorted(cumulative, target[:, None], right=True).squeeze(-1).minimum(last)
    before = (cumulative - weights).gather(-1, index[:, None]).squeeze(-1)
    return index, target - before
