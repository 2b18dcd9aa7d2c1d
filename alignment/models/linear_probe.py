"""A score head fitted to the features of a trunk that is not trained: where the training of both may start.

A head that starts at zero sends its first gradients, which say nothing yet, through the trunk and distorts features
that were good (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features"); a fitted one leaves them be.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from scipy.optimize import minimize
from scipy.special import expit
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignment.digests import content_id
from alignment.models.reward_model import pooled

Floats = NDArray[np.float64]
STRENGTHS = 10.0 ** np.arange(-4.5, 1.5, 0.5)  # variances of the normal prior on a weight, features standardised
FOLDS = 5


def fit_probe(chosen: Floats, rejected: Floats, clusters: Sequence[Hashable], *, centering: float = 0.0) -> Floats:
    """Weights (D,) of a Bradley–Terry model on features: P(chosen over rejected) = σ(w · difference).

    Args:
        chosen, rejected: (N, D) features of each pair's answers.
        clusters: N, the pairs' prompts, whose pairs stay in one fold.
        centering: coefficient of a pair's squared sum of scores, as in the training (Eisenstein et al. 2023).

    A normal prior holds the weights small; its width is the one of :data:`STRENGTHS` that predicts the other folds'
    pairs best, by log loss.
    """
    scale = (chosen - rejected).std(axis=0)
    scale[scale == 0] = 1.0
    x, sums = (chosen - rejected) / scale, (chosen + rejected) / scale
    folds = np.array([int(content_id(["fold", str(cluster)]), 16) % FOLDS for cluster in clusters])
    seen = [folds != fold for fold in np.unique(folds) if (folds != fold).any()]
    losses = [
        sum(_loss(x[~mask] @ _maximum(x[mask], sums[mask], width, centering)) for mask in seen) for width in STRENGTHS
    ]
    weights: Floats = _maximum(x, sums, float(STRENGTHS[int(np.argmin(losses))]), centering) / scale
    return weights


def start_at_probe(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    chosen: list[list[int]],
    rejected: list[list[int]],
    *,
    clusters: Sequence[Hashable],
    centering: float,
    batch_size: int,
    heard: Callable[[int], None],
) -> None:
    """Puts the score head of a reward model, adapted or not, where :func:`fit_probe` puts it on these pairs.

    ``heard`` is told now and then how many answers are read.
    """
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    head, training = whole.score, model.training
    whole.score = nn.Identity()  # what is then pooled are the features that the head reads
    try:
        features = pooled(model, tokenizer, [*chosen, *rejected], batch_size=batch_size, heard=heard).double().numpy()
    finally:
        whole.score = head
        model.train(training)
    weights = fit_probe(features[: len(chosen)], features[len(chosen) :], clusters, centering=centering)
    with torch.no_grad():
        for name, weight in head.named_parameters():
            if name.endswith("weight"):  # of an adapted model: the head that is trained, and the one it stands for
                weight.copy_(torch.from_numpy(weights)[None])


def _maximum(x: Floats, sums: Floats, variance: float, centering: float) -> Floats:
    """The weights (D,) that the pairs' differences and sums (N, D) and the prior make most likely."""

    def objective(weights: Floats) -> tuple[float, Floats]:
        margins, off_centre = x @ weights, sums @ weights
        value = _loss(margins) + centering * float(off_centre @ off_centre) + float(weights @ weights) / (2 * variance)
        return value, weights / variance + 2 * centering * (sums.T @ off_centre) - x.T @ expit(-margins)

    found = minimize(objective, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B")
    return np.asarray(found.x, dtype=np.float64)


def _loss(margins: Floats) -> float:
    """Negative log-likelihood of pairs, summed, in nats."""
    return float(np.logaddexp(0, -margins).sum())
