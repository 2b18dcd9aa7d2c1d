"""Sampling from an encoder-decoder (T5, BART): prompts are encoded once, and the decoder writes from its start token.

Rows of a batch stand at the same step, so that the decoder has no padding; the encoder's is masked. Where the model's
generation settings force a first token (BART's ``forced_bos_token_id``) each answer begins with it. What else they say
of how answers are drawn is the recipe's to say, and no EOS is forced on an answer that is cut off.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from alignment.models.seq2seq.architecture import decoder_start, forced_first
from alignment.records import Sampling
from alignment.rollouts.kv_cache import new_cache
from alignment.rollouts.sampling import choose, processors, uniforms

COMPACT_AT = 8  # finished rows are dropped once they are 1/8 of the batch: dropping copies the cache


class DecodedRow(Protocol):
    """One answer on its way."""

    @property
    def prompt(self) -> tuple[int, ...]: ...
    @property
    def seed(self) -> int: ...
    @property
    def finished(self) -> bool: ...


def padded_prompts(model: Any, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts' token ids (B, P), padded on the right, and their mask, on the model's device."""
    width, pad = max(map(len, prompts)), model.config.pad_token_id or 0
    ids = torch.tensor([[*prompt, *[pad] * (width - len(prompt))] for prompt in prompts], device=model.device)
    mask = torch.tensor([[True] * len(prompt) + [False] * (width - len(prompt)) for prompt in prompts])
    return ids, mask.to(model.device)


@contextmanager
def bare_settings(model: Any) -> Iterator[None]:
    """A model generates by what it is told alone: of its own generation settings only token ids are left."""
    own = model.generation_config
    names = ("decoder_start_token_id", "forced_bos_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(own, name) for name in names})
    try:
        yield
    finally:
        model.generation_config = own


class EncoderDecoding:
    """The tensors of a batch that is being sampled: the encoder's states, the decoder's cache, logits of next tokens.

    ``model`` is without PEFT's wrapper.
    """

    def __init__(self, model: Any, rows: Sequence[DecodedRow], sampling: Sampling) -> None:
        self.model, self.rows, self.sampling = model, list(rows), sampling
        device = model.device
        self.process = processors(sampling)
        self.uniform = uniforms([row.seed for row in rows], sampling.max_new_tokens).to(device)
        distinct = list(dict.fromkeys(row.prompt for row in rows))
        ids, mask = padded_prompts(model, distinct)
        states = model.get_encoder()(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        index = {prompt: place for place, prompt in enumerate(distinct)}
        chosen = torch.tensor([index[row.prompt] for row in rows], device=device)
        self.states, self.mask = states[chosen], mask[chosen]
        self.cache = EncoderDecoderCache(new_cache(model.config, sampling.max_new_tokens), DynamicCache())
        self.ids = torch.full((len(rows), 1), decoder_start(model), device=device)
        self.first = forced_first(model)
        self.logits = self._forward(self.ids)

    def choose(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The next token of every row and its log-probability: (B,) int64 and (B,) float32.

        Raises NotFiniteError where the model gives no probabilities.
        """
        if step == 0 and self.first is not None:
            tokens = torch.full_like(self.ids[:, 0], self.first)
            heat = self.sampling.temperature or 1.0
            return tokens, (self.logits / heat).log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
        uniform = self.uniform[:, step]
        return choose(self.process, self.ids, self.logits, uniform, temperature=self.sampling.temperature)

    def advance(self, tokens: torch.Tensor) -> None:
        """Runs the decoder on the newest tokens (B,), first dropping finished rows where that pays."""
        unfinished = [place for place, row in enumerate(self.rows) if not row.finished]
        if (len(self.rows) - len(unfinished)) * COMPACT_AT >= len(self.rows):
            tokens = self._keep(unfinished, tokens)
        if self.sampling.repetition_penalty != 1.0:
            self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        self.logits = self._forward(tokens[:, None])

    def _keep(self, places: list[int], tokens: torch.Tensor) -> torch.Tensor:
        chosen = torch.tensor(places, device=self.ids.device)
        self.rows = [self.rows[place] for place in places]
        self.cache.batch_select_indices(chosen)
        self.states, self.mask, self.ids = self.states[chosen], self.mask[chosen], self.ids[chosen]
        self.uniform = self.uniform[chosen]
        return tokens[chosen]

    def _forward(self, read: torch.Tensor) -> torch.Tensor:
        """Logits (B, V) in float32 after the last of ``read`` (B, T)."""
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.states),
            attention_mask=self.mask.long(),
            decoder_input_ids=read,
            past_key_values=self.cache,
            use_cache=True,
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits
