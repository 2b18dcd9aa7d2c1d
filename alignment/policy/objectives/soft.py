"""Losses that gate a token softly where others clip it."""

import math

import torch

from alignment.policy.objectives.terms import Options, Terms, TokenStats, log_ratio

POSITIVE, NEGATIVE = (2.0, 3.0), (3.0, 2.0)  # VESPO's k and λ by the advantage's sign, as TRL has them
LEAST, MOST = math.log(1e-8), 20.0  # bounds of VESPO's logarithms


def sapo(terms: Terms, options: Options) -> tuple[torch.Tensor, TokenStats]:
    """SAPO's gate ``4 / τ * sigmoid(τ (ratio - 1))`` in the ratio's place (Gao et al. 2025, eq. 6): slope 1 at ratio 1.

    ``gate_temperatures`` are τ where the advantage is positive, and where it is not.
    """
    positive, negative = options.gate_temperatures
    advantages = torch.where(terms.mask, terms.advantages, 0.0)
    ratio = log_ratio(terms, options.level).exp()
    temperature = torch.where(advantages > 0, positive, negative)
    return -torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature * advantages, {}


def vespo(terms: Terms, _options: Options) -> tuple[torch.Tensor, TokenStats]:
    """VESPO: the policy gradient times a gamma-shaped weight of the answer's whole ratio w, ``w^k exp(λ (1 - w))``.

    The weight carries no gradient. ``terms.weights`` enter w, so that nobody multiplies by them again.
    """
    advantages = torch.where(terms.mask, terms.advantages, 0.0)
    with torch.no_grad():
        log_w = log_ratio(terms, "token").clamp(-MOST, MOST)
        if terms.weights is not None:
            log_w = log_w + torch.where(terms.mask, terms.weights, 1.0).log().clamp(LEAST, MOST)
        log_w = log_w.sum(dim=1, keepdim=True).clamp(LEAST, MOST)
        (k_up, lam_up), (k_down, lam_down) = POSITIVE, NEGATIVE
        k, lam = (torch.where(advantages >= 0, up, down) for up, down in ((k_up, k_down), (lam_up, lam_down)))
        weight = (lam + k * log_w - lam * log_w.exp()).exp()
    loss = -weight * advantages * torch.where(terms.mask, terms.logprobs, 0.0)
    return loss, {"vespo_weight": weight}
