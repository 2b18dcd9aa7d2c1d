"""A score head fitted to the features of a trunk that is not trained: where the training of both may start.

A head that starts at zero sends its first gradients, which say nothing yet, through the trunk and distorts features
that were good (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features"); a fitted one leaves them be.
"""

from collections.abc import Hashable, Sequence
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


def fit_probe(differences: Floats, clusters: Sequence[Hashable]) -> Floats:
    """Weights (D,) of a Bradley–Terry model on features: P(chosen over rejected) = σ(w · difference).

    Args:
        differences: (N, D) features of each pair's chosen answer minus those of its rejected one.
        clusters: N, the pairs' prompts, whose pairs stay in one fold.

    A normal prior holds the weights small; its width is the one of :data:`STRENGTHS` that predicts the other folds'
    pairs best, by log loss.
    """
    scale = differences.std(axis=0)
    scale[scale == 0] = 1.0
    x = differences / scale
    folds = np.array([int(content_id(["fold", str(cluster)]), 16) % FOLDS for cluster in clusters])
    splits = [(x[folds != fold], x[folds == fold]) for fold in np.unique(folds) if (folds != fold).any()]
    losses = [sum(_loss(seen @ _maximum(rest, width)) for rest, seen in splits) for width in STRENGTHS]
    weights: Floats = _maximum(x, float(STRENGTHS[int(np.argmin(losses))])) / scale
    return weights


def start_at_probe(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    chosen: list[list[int]],
    rejected: list[list[int]],
    *,
    clusters: Sequence[Hashable],
    batch_size: int,
) -> None:
    """Puts the score head of a reward model, adapted or not, where :func:`fit_probe` puts it on these pairs."""
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    head, training = whole.score, model.training
    whole.score = nn.Identity()  # what is then pooled are the features that the head reads
    try:
        features = pooled(model, tokenizer, [*chosen, *rejected], batch_size=batch_size).double().numpy()
    finally:
        whole.score = head
        model.train(training)
    weights = fit_probe(features[: len(chosen)] - features[len(chosen) :], clusters)
    with torch.no_grad():
        for name, weight in head.named_parameters():
            if name.endswith("weight"):  # of an adapted model: the head that is trained, and the one it stands for
                weight.copy_(torch.from_numpy(weights)[None])


def _maximum(x: Floats, variance: float) -> Floats:
    """The weights (D,) that the pairs' differences (N, D) and the prior make most likely."""

    def objective(weights: Floats) -> tuple[float, Floats]:
        margins = x @ weights
        gradient = weights / variance - x.T @ expit(-margins)
        return _loss(margins) + float(weights @ weights) / (2 * variance), gradient

    found = minimize(objective, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B")
    return np.asarray(found.x, dtype=np.float64)


def _loss(margins: Floats) -> float:
    """Negative log-likelihood of pairs, summed, in nats."""
    return float(np.logaddexp(0, -margins).sum())
