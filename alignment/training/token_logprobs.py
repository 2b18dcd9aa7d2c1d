"""Log-probabilities of given tokens, without the (B, T, V) tensor they are usually read from.

At a vocabulary of 49,152, the logits of 32 answers of 48 tokens are 300 MB in float32, and their softmax and gradient
as much again. Here they exist one chunk of tokens at a time.

The gradient of a token's log-probability by its hidden state is ``(W[label] - E_p[W]) / temperature``, where the
expectation over the vocabulary does not depend on what arrives from above. So the forward pass computes it while the
chunk's probabilities are at hand, and the backward pass multiplies: two large matrix products where recomputing needs
three. Only a head that is itself trained has its chunks computed again in the backward pass.

For a confident token the two terms are nearly equal, and in bfloat16 their difference would be rounding alone. So it
is taken in float32 between the probabilities, ``(1[label] - p) @ W``, and rounded to the head's dtype afterwards.
"""

from typing import Any

import torch

CHUNK_ENTRIES = 2**23  # logits held at a time: 32 MB in float32
CHUNK_TOKENS = 32  # at least so many tokens a chunk, or the matrix products grow thin


def token_logprobs(
    hidden: torch.Tensor,
    head_weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float = 1.0,
    head_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``log softmax(hidden @ head_weight.T / temperature)[labels]``, differentiable by ``hidden`` and ``head_weight``.

    Args:
        hidden: (..., D) final hidden states, each before the token it predicts.
        head_weight: (V, D) of the language-model head.
        labels: (...) int64 in [0, V).
        temperature: what logits are divided by.
        head_bias: (V,) of the head, if it has one; takes no gradient.

    Returns:
        (...) float32 (float64 for float64 input).
    """
    return token_logprobs_and_entropy(hidden, head_weight, labels, temperature=temperature, head_bias=head_bias)[0]


def token_logprobs_and_entropy(
    hidden: torch.Tensor,
    head_weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float = 1.0,
    head_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`token_logprobs`, with the entropy of each token's distribution in nats (which has no gradient)."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    logprobs, entropy, _ = _TokenLogprobs.apply(flat, head_weight, labels.reshape(-1), temperature, head_bias, False)  # type: ignore[no-untyped-call]
    return logprobs.view(labels.shape), entropy.view(labels.shape)


def token_statistics(
    hidden: torch.Tensor,
    head_weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float = 1.0,
    head_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As :func:`token_logprobs_and_entropy`, with whether each label (N,) is its distribution's most likely token."""
    return _TokenLogprobs.apply(hidden, head_weight, labels, temperature, head_bias, True)  # type: ignore[no-untyped-call, no-any-return]


class _TokenLogprobs(torch.autograd.Function):
    """Rows are tokens: hidden (N, D), labels (N,)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        temperature: float,
        bias: torch.Tensor | None,
        want_top: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        count = hidden.shape[0]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs, entropy, normaliser = (hidden.new_empty(count, dtype=wide) for _ in range(3))
        is_top1 = torch.empty(count, dtype=torch.bool, device=hidden.device)
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None  # d logprob / d hidden
        for rows in chunks(count, weight.shape[0]):
            logits = _logits(hidden[rows], weight, temperature, bias)
            if want_top:
                is_top1[rows] = logits.argmax(-1) == labels[rows]
            normaliser[rows] = logits.logsumexp(-1)
            logprobs[rows] = logits.gather(-1, labels[rows, None]).squeeze(-1) - normaliser[rows]
            probs = (logits - normaliser[rows, None]).exp_()
            entropy[rows] = normaliser[rows] - logits.mul_(probs).sum(-1)
            if slope is not None:
                slope[rows] = (_less_expected(probs, labels[rows]).to(weight.dtype) @ weight) / temperature
        ctx.temperature, ctx.has_bias = temperature, bias is not None
        ctx.save_for_backward(slope, *((hidden, weight, labels, normaliser) if ctx.needs_input_grad[1] else ()))
        ctx.bias = bias
        ctx.mark_non_differentiable(entropy, is_top1)
        return logprobs, entropy, is_top1

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad = grads[0]
        slope, *saved = ctx.saved_tensors
        grad_hidden = None if slope is None else slope * grad[:, None].to(slope.dtype)
        grad_weight = None
        if saved:
            hidden, weight, labels, normaliser = saved
            wide = torch.zeros(weight.shape, dtype=normaliser.dtype, device=weight.device)
            for rows in chunks(hidden.shape[0], weight.shape[0]):
                probs = (_logits(hidden[rows], weight, ctx.temperature, ctx.bias) - normaliser[rows, None]).exp_()
                by_logit = _less_expected(probs, labels[rows]).mul_(grad[rows, None] / ctx.temperature)
                wide += by_logit.to(weight.dtype).T @ hidden[rows]
            grad_weight = wide.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None


def _less_expected(probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The gradient ``1[label] - p`` (N, V) of log-probabilities by logits, in place of ``probs``.

    At the label it is the sum of all other probabilities: ``1 - p`` would lose the digits that matter as p nears 1.
    """
    places = labels[:, None]
    probs.scatter_(-1, places, 0.0)
    others = probs.sum(-1, keepdim=True)
    return probs.neg_().scatter_(-1, places, others)


def chunks(count: int, vocabulary: int) -> list[slice]:
    """``count`` tokens in slices whose logits are held together."""
    size = max(CHUNK_TOKENS, CHUNK_ENTRIES // vocabulary)
    return [slice(start, start + size) for start in range(0, count, size)]


def _logits(hidden: torch.Tensor, weight: torch.Tensor, temperature: float, bias: torch.Tensor | None) -> torch.Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
