"""Speculative decoding (Leviathan et al. 2023): several tokens are proposed cheaply, and the model reads them at once.

A proposed token is accepted where it is the very token that the model takes there: the likeliest, or the one that its
uniform number for this place falls on. So an answer is the one that plain decoding gives for the same seed, greedy or
drawn, within the rounding of a forward pass of several tokens instead of one. A draft model draws by the same numbers
as the model, which makes both fall on the same token the oftener the more alike they are (coupled draws: Daliri et al.
2024); transformers' assisted generation accepts by a draw of its own, and its answers depend on what was proposed.
"""

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import torch
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from alignment.records import Sampling
from alignment.rollouts.prefix_cache import PrefixCache
from alignment.rollouts.sampling import choose, processors
from alignment.rollouts.transformers_engine import TransformersEngine

FIRST_LENGTH = 5  # tokens that a draft model proposes at first
NO_LIMIT = 1 << 60


class Drafter(Protocol):
    """Proposes how a row of tokens goes on. ``proposed`` and ``accepted`` count tokens."""

    proposed: int
    accepted: int

    def propose(self, tokens: Sequence[int], uniform: torch.Tensor) -> list[int]:
        """At most as many tokens as ``uniform`` (k,) has numbers: those by which the model will draw after these."""
        ...

    def learn(self, proposed: int, accepted: int) -> None:
        """Is told how many of what it proposed were the model's own."""
        ...


class PromptLookup:
    """Proposes what followed the row's last two tokens (or its last) where they first stood: transformers' search."""

    def __init__(self, length: int) -> None:
        self.proposed = self.accepted = 0
        self._search = PromptLookupCandidateGenerator(num_output_tokens=length, max_length=NO_LIMIT)

    def propose(self, tokens: Sequence[int], uniform: torch.Tensor) -> list[int]:
        """See :class:`Drafter`."""
        if len(tokens) < 2:
            return []  # nothing stood before
        row, _logits = self._search.get_candidates(torch.tensor([list(tokens)]))
        return row[0, len(tokens) : len(tokens) + len(uniform)].tolist()  # type: ignore[no-any-return]

    def learn(self, proposed: int, accepted: int) -> None:
        """See :class:`Drafter`."""
        self.proposed, self.accepted = self.proposed + proposed, self.accepted + accepted


class DraftModel:
    """A smaller model with the same vocabulary, which goes on by itself.

    It proposes two tokens more after a proposal that was right to its end, and one less after any other.
    """

    def __init__(self, engine: TransformersEngine, sampling: Sampling, *, vocabulary: int) -> None:
        """``vocabulary`` is the model's number of logits; the draft's may be padded to more.

        Raises StageError where no token can be taken back from the draft model's cache.
        """
        self.proposed = self.accepted = 0
        self._engine, self._cache, self._length = engine, PrefixCache(engine), FIRST_LENGTH
        self._process, self._temperature = processors(sampling), sampling.temperature
        self._vocabulary = vocabulary
        self._room = getattr(engine._config.get_text_config(), "max_position_embeddings", None) or NO_LIMIT

    def propose(self, tokens: Sequence[int], uniform: torch.Tensor) -> list[int]:
        """See :class:`Drafter`."""
        count = min(self._length, len(uniform), self._room - len(tokens))
        if count < 1:
            return []
        row = list(tokens)
        self._cache.begin(row)
        for place in range(count):
            logits = self._cache.read(row[len(self._cache.tokens) :])[:, : self._vocabulary]
            row.append(
                next_token(self._process, row, logits, uniform[place : place + 1], temperature=self._temperature)
            )
            if row[-1] in self._engine.stop_ids:
                break
        return row[len(tokens) :]

    def learn(self, proposed: int, accepted: int) -> None:
        """See :class:`Drafter`."""
        self.proposed, self.accepted = self.proposed + proposed, self.accepted + accepted
        if proposed:
            self._length = self._length + 2 if accepted == proposed else max(1, self._length - 1)


def next_token(
    process: Any, row: Sequence[int], logits: torch.Tensor, uniform: torch.Tensor, *, temperature: float
) -> int:
    """The token after ``row``, of logits (1, V) and a uniform number (1,)."""
    ids = torch.tensor([list(row)], device=logits.device) if len(process) else logits.new_empty(1, 0, dtype=torch.long)
    tokens, _logprobs = choose(process, ids, logits, uniform, temperature=temperature)
    return int(tokens)


def accepted_tokens(
    process: Any,
    row: Sequence[int],
    proposal: Sequence[int],
    logits: torch.Tensor,
    uniform: torch.Tensor,
    *,
    temperature: float,
    stops: Collection[int],
) -> list[int]:
    """The model's own tokens after ``row``, up to the first that was not proposed, or that ends the answer.

    ``logits`` (k + 1, V) follow the row's last token and each of the k proposed ones; ``uniform`` has k + 1 numbers.
    """
    found: list[int] = []
    for place in range(len(proposal) + 1):
        here = slice(place, place + 1)
        token = next_token(process, [*row, *found], logits[here], uniform[here], temperature=temperature)
        found.append(token)
        if token in stops or token not in proposal[here]:
            break
    return found
