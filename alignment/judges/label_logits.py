"""Logits of a few labels after many questions that begin alike.

What all questions begin with is run through the model once, and its keys and values are kept; every later batch is a
forest of the distinct continuations behind it (:mod:`alignment.models.tree_attention`). Only the last token of a
question meets the model's own head (:mod:`alignment.models.families.head`), so that no logits of other places are ever
computed where they need not be.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from alignment.errors import NotFiniteError, StageError
from alignment.models.families.head import HeadKind, head_kind, own_logits, trunk_of
from alignment.models.prefix_sharing import common_prefix
from alignment.models.tree_attention import NODES, NODES_ELSEWHERE, can_be_planted, last_states, plant


class LabelReader:
    """Logits of a few labels after token sequences, and the share of the model's probability that is on them.

    ``computed`` counts the tokens that went through the trunk.
    """

    def __init__(
        self, model: Any, tokenizer: Any, labels: Sequence[str], lead: Sequence[int], beginning: Sequence[int] = ()
    ) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.model, self.trunk = base, trunk_of(base)
        self.whole = head_kind(base) == HeadKind.WHOLE
        self.device, self.pad = model.device, tokenizer.pad_token_id
        self.labels = [self._first_token(tokenizer, lead, label) for label in labels]
        if len(set(self.labels)) < len(labels):
            raise StageError(f"the model's tokenizer begins the labels {', '.join(labels)} with the same token")
        self.shares = not self.whole and can_be_planted(self.trunk)
        self.beginning = list(beginning)
        self.caches: dict[int, Any] = {}  # by length: keys and values of so much of the beginning
        self.computed = 0

    @staticmethod
    def _first_token(tokenizer: Any, lead: Sequence[int], label: str) -> int:
        """The token that a label begins with where it follows the lead."""
        text = tokenizer.decode(lead)
        whole = tokenizer(f"{text} {label}", add_special_tokens=False)["input_ids"]
        rest: list[int] = whole[common_prefix(whole, lead) :]
        # A tokenizer may write the space as a token of its own, which all labels then share.
        space = tokenizer(" ", add_special_tokens=False)["input_ids"]
        return rest[len(space)] if rest[: len(space)] == space and len(rest) > len(space) else rest[0]

    @torch.inference_mode()
    def read(self, rows: Sequence[list[int]]) -> list[tuple[list[float], float]]:
        """(logits of the labels, their share of the probability) after each row of token ids, in the rows' order."""
        if not rows:
            return []
        logits = (own_logits(self.model, self._shared(rows)) if self.shares else self._padded(rows)).float()
        chosen = logits[:, self.labels]
        mass = (chosen.logsumexp(-1) - logits.logsumexp(-1)).exp()
        if not torch.isfinite(mass).all():
            raise NotFiniteError("the judge's logits are not finite numbers")
        return [(one, float(share)) for one, share in zip(chosen.tolist(), mass.tolist(), strict=True)]

    def _shared(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """(rows, D): the hidden states of the rows' last tokens, each distinct prefix computed once."""
        beginning, cache = self._beginning(rows)
        rest = [row[len(beginning) :] for row in rows]
        width, most = self.trunk.config.get_text_config().hidden_size, NODES.get(self.device.type, NODES_ELSEWHERE)
        last: dict[int, torch.Tensor] = {}
        for forest in plant(rest, beginning=len(beginning), width=width, most=most):
            states = last_states(self.trunk, forest, beginning=len(beginning), cache=cache)
            last |= dict(zip(forest.ends, states, strict=True))
            self.computed += len(forest.tokens)
        return torch.stack([last[row] for row in range(len(rows))])

    def _beginning(self, rows: Sequence[list[int]]) -> tuple[list[int], Any]:
        """The tokens that all questions begin with, and their keys and values, computed once.

        A tokenizer may merge them with what follows: then fewer are shared by these rows. What was asked before plays
        no part in it, so a batch's logits are the same bits whoever reads it.
        """
        common = self.beginning
        for row in rows:
            common = common[: common_prefix(common, row[:-1])]
        if len(common) not in self.caches:
            cache = DynamicCache(config=self.trunk.config)
            if common:
                ids = torch.tensor([common], device=self.device)
                self.trunk(input_ids=ids, past_key_values=cache, use_cache=True)
                self.computed += len(common)
            self.caches[len(common)] = cache
        return common, self.caches[len(common)]

    def _padded(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """(rows, V): the logits after the rows' last tokens, each row computed by itself."""
        width = max(map(len, rows))
        ids = torch.tensor([row + [self.pad or 0] * (width - len(row)) for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = (torch.arange(width, device=self.device) < lengths[:, None]).long()
        self.computed += ids.numel()
        last = torch.arange(len(rows), device=self.device), lengths - 1
        if self.whole:
            whole: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).logits[last]
            return whole
        return own_logits(self.model, self.trunk(input_ids=ids, attention_mask=mask).last_hidden_state[last])
