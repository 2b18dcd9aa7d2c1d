"""What a model has read of a conversation, kept for the next turn of it.

A turn's prompt begins with what the model read and said before it, so that only its new end has to be read. Prompts
are compared token by token: a template that writes earlier turns otherwise once later ones follow, or an answer that
is tokenised otherwise when it is read back, costs what differs and is never wrong.
"""

from collections.abc import Sequence
from typing import cast

import torch

from alignment.errors import StageError
from alignment.models.families import CACHE_ARGUMENT, independent_length
from alignment.models.prefix_sharing import common_prefix
from alignment.rollouts.kv_cache import BufferedLayer, is_buffered, new_cache
from alignment.rollouts.transformers_engine import TransformersEngine

CAPACITY = 256  # tokens that a new cache has room for; it grows


def keeps_prefixes(engine: TransformersEngine) -> bool:
    """Whether tokens can be taken back from a model's cache: it has neither recurrent states nor sliding windows."""
    plain = engine._cache == CACHE_ARGUMENT and not engine._fixed_rows and not engine._parted
    return plain and is_buffered(new_cache(engine._config, 1))


class PrefixCache:
    """Keys and values of one row of tokens, which the next row reads on from where the two part.

    ``asked`` and ``reused`` count the tokens of the prompts, and those of them that were here already.
    """

    def __init__(self, engine: TransformersEngine) -> None:
        """Raises StageError where the model keeps what no token can be taken back from (:func:`keeps_prefixes`)."""
        if not keeps_prefixes(engine):
            raise StageError("the model keeps recurrent states or sliding windows, from which no token is taken back")
        self.engine = engine
        self.tokens: list[int] = []
        self.asked = self.reused = 0
        self._cache = new_cache(engine._config, CAPACITY)
        self._ready = engine._config._attn_implementation == "sdpa" and engine._own_masks

    def begin(self, prompt: Sequence[int]) -> None:
        """Keeps the tokens that ``prompt`` begins with, all but its last, behind which its first answer token is."""
        kept = min(common_prefix(self.tokens, prompt), len(prompt) - 1)
        limit = independent_length(self.engine._config)
        if limit is not None and self.engine.virtual_tokens + max(len(self.tokens), len(prompt)) > limit:
            kept = 0  # a longer row has other rotary positions from its first token on
        self.crop(kept)
        self.asked += len(prompt)
        self.reused += kept

    def crop(self, length: int) -> None:
        """Forgets all but the first ``length`` tokens; without any, also those that the model puts in front."""
        del self.tokens[length:]
        held = length + self.engine.virtual_tokens if length else 0
        for layer in self._cache.layers:
            cast(BufferedLayer, layer).crop_to(held)

    @torch.no_grad()
    def read(self, ids: Sequence[int], keep: int = 1) -> torch.Tensor:
        """Reads ``ids`` after what is here: the logits (keep, V) in float32 after each of the last ``keep`` of them."""
        start = len(self.tokens)
        self.crop(start)  # a call that was interrupted left some layers with more
        engine, device, total = self.engine, self.engine.model.device, start + len(ids)
        options: dict[str, object] = {"logits_to_keep": keep} if engine._last_only else {}
        places = torch.arange(total, device=device)
        if engine._positions:
            options["position_ids"] = places[None, start:]
        if start and self._ready:  # attention that is given a mask does not repeat the keys of grouped queries
            mask = (places[None] <= places[start:, None])[None, None]
        else:
            mask = torch.ones(1, total, dtype=torch.long, device=device)
        options |= {"attention_mask": mask, engine._cache: self._cache}
        output = engine.model(input_ids=torch.tensor([list(ids)], device=device), use_cache=True, **options)
        self.tokens.extend(ids)
        return output.logits[0, -keep:].float()  # type: ignore[no-any-return]
