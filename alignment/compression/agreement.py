"""How far an export agrees with the policy that it was made from, on texts that the policy wrote."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any, TypeAlias

import torch

from alignment.metrics.kl import token_kl

Row: TypeAlias = tuple[Sequence[int], Sequence[int]]
"""The tokens of a prompt, and of an answer to it."""


@dataclass(slots=True)
class TokenAgreement:
    """Sums over the tokens of answers, each given all tokens before it.

    Attributes:
        equal: tokens at which both find the same one most likely.
        kl: KL(policy‖export) of next-token distributions, in nats.
        nats: negative log-likelihood of the answers under the policy, and under the export.
    """

    tokens: int = 0
    equal: int = 0
    kl: float = 0.0
    nats: tuple[float, float] = (0.0, 0.0)

    def add(self, policy: torch.Tensor, exported: torch.Tensor, answer: Sequence[int]) -> None:
        """Adds one answer's tokens: logits (T, V) of both, each row before its token."""
        labels = torch.tensor(list(answer), device=policy.device)[:, None]
        self.tokens += len(answer)
        self.equal += int((policy.argmax(-1) == exported.argmax(-1)).sum())
        self.kl += float(token_kl(policy, exported).double().sum())
        sides = [-float(one.float().log_softmax(-1).gather(-1, labels).double().sum()) for one in (policy, exported)]
        self.nats = (self.nats[0] + sides[0], self.nats[1] + sides[1])

    @property
    def equal_share(self) -> float:
        """The share of tokens at which both are equally greedy."""
        return self.equal / self.tokens

    @property
    def kl_per_token(self) -> float:
        """Mean KL in nats a token."""
        return self.kl / self.tokens

    @property
    def perplexities(self) -> tuple[float, float]:
        """Of the answers, under the policy and under the export."""
        return exp(self.nats[0] / self.tokens), exp(self.nats[1] / self.tokens)


def compare(policy: Any, exported: Any, rows: Sequence[Row], *, batch_size: int) -> TokenAgreement:
    """The agreement of two transformers models on the answers of ``rows``."""
    found = TokenAgreement()
    ordered = sorted(rows, key=lambda row: len(row[0]) + len(row[1]))
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        for (_prompt, answer), one, other in zip(
            batch, answer_logits(policy, batch), answer_logits(exported, batch), strict=True
        ):
            found.add(one, other.to(one.device), answer)
    return found


@torch.inference_mode()
def answer_logits(model: Any, rows: Sequence[Row]) -> Iterator[torch.Tensor]:
    """For each row the logits (answer's tokens, V) before each of the answer's tokens; one pass for all of them."""
    wholes = [[*prompt, *answer] for prompt, answer in rows]
    longest = max(map(len, wholes))
    ids = torch.tensor([[*whole, *[0] * (longest - len(whole))] for whole in wholes], device=model.device)
    mask = torch.tensor([[1] * len(whole) + [0] * (longest - len(whole)) for whole in wholes], device=model.device)
    first = min(len(prompt) for prompt, _answer in rows) - 1  # the position that predicts the earliest answer
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    options = {"logits_to_keep": longest - first} if keeps else {}
    logits = model(input_ids=ids, attention_mask=mask, **options).logits[:, -(longest - first) :]
    for place, (prompt, answer) in enumerate(rows):
        begin = len(prompt) - 1 - first
        yield logits[place, begin : begin + len(answer)]
