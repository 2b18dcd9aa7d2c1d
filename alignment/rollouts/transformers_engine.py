"""Sampling from a transformers model in this process.

What makes it faster than ``model.generate``, with the same tokens: a prompt is prefilled once for all of its samples;
rows are sorted by length, so that little is padding; rows that have finished leave the batch; the cache grows in
place; and attention always gets a mask, which keeps grouped-query models on the kernel that does not repeat the keys
(half of the time of a step on a CPU).

What it leaves out: weights are never merged with an adapter. Merging in bfloat16 rounds small updates away, and the
policy that samples would no longer be the policy that trains.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from alignment.errors import StageError
from alignment.models.adapter_kinds.soft_prompt import virtual_tokens
from alignment.models.families import STATES_ARGUMENT, cache_argument, independent_length, takes_own_masks
from alignment.models.prefix_sharing import common_prefix
from alignment.models.seq2seq.architecture import is_encoder_decoder
from alignment.records import Sampling
from alignment.rollouts.beams import best_beams
from alignment.rollouts.encoder_decoder import EncoderDecoding
from alignment.rollouts.engine import Completion
from alignment.rollouts.kv_cache import is_buffered, keeps_states_itself, new_cache, select_rows
from alignment.rollouts.sampling import choose, processors, uniforms

SHARED_TOKENS = 64  # that sharing spares at least: a pass over the beginning costs about as much as one step
COMPACT_AT = 8  # finished rows are dropped once they are 1/8 of the batch: dropping copies the cache


@dataclass(slots=True)
class _Row:
    """One completion on its way."""

    prompt: tuple[int, ...]
    seed: int
    place: int  # in the caller's order
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str | None = None  # set by a stop string
    finished: bool = False


class TransformersEngine:
    """An :class:`alignment.rollouts.engine.Engine` over a causal language model or an encoder-decoder, with or
    without a PEFT adapter.

    ``batch_size`` rows are sampled together; ``stop_ids`` are the token ids that end a completion. ``share_prefixes``
    reads once what all prompts of a batch begin with, which rounds otherwise than reading each of them whole.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        stop_ids: set[int],
        batch_size: int = 64,
        share_prefixes: bool = False,
    ) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        accepted = inspect.signature(base.forward).parameters
        name = cache_argument(base)
        if name is None:
            raise StageError(f"{type(base).__name__} keeps no key-value cache; it cannot be sampled from here")
        self.model = model
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)
        self.batch_size = batch_size
        self._config, self._parted = base.config, is_encoder_decoder(base.config)
        self._cache = name
        self._own_masks = takes_own_masks(base.config)
        self._positions = "position_ids" in accepted
        self._last_only = "logits_to_keep" in accepted
        self._fixed_rows = keeps_states_itself(base)
        self._share = share_prefixes and self._positions and self._own_masks and not self._fixed_rows

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: Sampling,
        seeds: Sequence[int],
        per_prompt: int = 1,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        """See :meth:`alignment.rollouts.engine.Engine.generate`. Raises ValueError for an empty prompt."""
        if len(seeds) != len(prompts) * per_prompt:
            raise ValueError(f"{len(prompts)} prompts × {per_prompt} samples need as many seeds, not {len(seeds)}")
        if not all(prompts):
            raise ValueError("a prompt has no tokens")
        if sampling.beams > 1:
            return self._beams(prompts, sampling, per_prompt, on_progress)
        rows = [_Row(tuple(prompts[place // per_prompt]), seed, place) for place, seed in enumerate(seeds)]
        batches = sorted(rows, key=lambda row: (-len(row.prompt), row.prompt, row.place))
        done = 0
        with _evaluating(self.model), torch.no_grad():
            for batch in self._batches(batches):
                for finished in self._sample(batch, sampling):
                    done += finished
                    if on_progress is not None:
                        on_progress(done, len(rows))
        completions = [self._completion(row) for row in rows]
        return [completions[i : i + per_prompt] for i in range(0, len(rows), per_prompt)]

    @property
    def virtual_tokens(self) -> int:
        """Tokens that the model itself puts in front of each row, and into its cache."""
        return virtual_tokens(self.model)

    def _batches(self, rows: list[_Row]) -> Iterator[list[_Row]]:
        """Rows that are sampled together: of one length, where a model's own states would take padding for text."""
        groups = [list(group) for _length, group in groupby(rows, lambda row: len(row.prompt))]
        for group in groups if self._fixed_rows else [rows]:
            for start in range(0, len(group), self.batch_size):
                yield group[start : start + self.batch_size]

    def _shared(self, prompts: Sequence[tuple[int, ...]], cache: DynamicCache) -> int:
        """How many tokens all of a batch's prompts begin with, where reading them once is right and pays."""
        limit = independent_length(self._config)
        short = limit is None or self.virtual_tokens + max(map(len, prompts)) <= limit
        if not (self._share and short and is_buffered(cache)):
            return 0
        # What the first and the last in order begin with, all between them do. A row's last token is its own.
        shared = min(common_prefix(min(prompts), max(prompts)), min(map(len, prompts)) - 1)
        return shared if shared * (len(prompts) - 1) >= SHARED_TOKENS else 0

    def _beams(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        per_prompt: int,
        on_progress: Callable[[int, int], None] | None,
    ) -> list[list[Completion]]:
        """The ``per_prompt`` best beams of every prompt, best first: transformers' own search, in batches by length."""
        order = sorted(range(len(prompts)), key=lambda place: (len(prompts[place]), place))
        size = max(1, self.batch_size // sampling.beams)
        found: dict[int, list[Completion]] = {}
        with _evaluating(self.model), torch.no_grad():
            for start in range(0, len(order), size):
                chosen = order[start : start + size]
                asked = [prompts[place] for place in chosen]
                rows = best_beams(self.model, asked, sampling, per_prompt, self.stop_ids)
                for place, group in zip(chosen, rows, strict=True):
                    found[place] = [self._beam(tokens) for tokens in group]
                if on_progress is not None:
                    on_progress(len(found) * per_prompt, len(prompts) * per_prompt)
        return [found[place] for place in range(len(prompts))]

    def _beam(self, tokens: list[int]) -> Completion:
        """What lies behind the first stop token is padding."""
        end = next((place for place, token in enumerate(tokens) if token in self.stop_ids), None)
        kept = tuple(tokens if end is None else tokens[: end + 1])
        return Completion(kept, str(self.tokenizer.decode(kept, skip_special_tokens=True)), end is not None)

    def _completion(self, row: _Row) -> Completion:
        text = row.text
        if text is None:
            text = str(self.tokenizer.decode(row.tokens, skip_special_tokens=True))
        return Completion(tuple(row.tokens), text, row.finished, torch.tensor(row.logprobs, dtype=torch.float32))

    def _base(self) -> Any:
        """The model without PEFT's wrapper, whose adapter is inside of it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def _sample(self, rows: list[_Row], sampling: Sampling) -> Iterator[int]:
        """Samples the rows to their ends; yields how many finished, whenever some did."""
        parted = self._parted
        state: Any = EncoderDecoding(self._base(), rows, sampling) if parted else _Decoding(self, rows, sampling)
        active = list(rows)
        for step in range(sampling.max_new_tokens):
            tokens, logprobs = state.choose(step)
            for row, token, logprob in zip(state.rows, tokens.tolist(), logprobs.tolist(), strict=True):
                if not row.finished:
                    row.tokens.append(token)
                    row.logprobs.append(logprob)
            self._finish(active, sampling.stop)
            still = [row for row in active if not row.finished]
            if len(still) < len(active):
                yield len(active) - len(still)
            active = still
            if not active or step + 1 == sampling.max_new_tokens:
                break
            state.advance(tokens)
        if active:
            yield len(active)

    def _finish(self, rows: list[_Row], stop: tuple[str, ...]) -> None:
        """Marks the rows that ended with their newest token."""
        for row in rows:
            row.finished = row.tokens[-1] in self.stop_ids
        if not stop:
            return
        texts = self.tokenizer.batch_decode([row.tokens for row in rows], skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            places = [place for place in map(text.find, stop) if place >= 0]
            if places:
                row.text, row.finished = text[: min(places)], True


class _Decoding:
    """The tensors of a batch that is being sampled: logits of the next token, cache, mask and positions."""

    def __init__(self, engine: TransformersEngine, rows: list[_Row], sampling: Sampling) -> None:
        self.engine, self.rows, self.sampling = engine, rows, sampling
        self.device = engine.model.device
        self.process = processors(sampling)
        self.uniform = uniforms([row.seed for row in rows], sampling.max_new_tokens).to(self.device)
        prompts = [row.prompt for row in rows]
        distinct = prompts if engine._fixed_rows else list(dict.fromkeys(prompts))
        width = max(len(prompt) for prompt in distinct)
        self.cache = new_cache(engine._config, engine.virtual_tokens + width + sampling.max_new_tokens)
        # The padding repeats a token of the row's own, so that the repetition penalty sees nothing that is not there.
        shared = engine._shared(distinct, self.cache)  # tokens, in front of the padding
        padded = [[*row[:shared], *[row[0]] * (width - len(row)), *row[shared:]] for row in distinct]
        ids = torch.tensor(padded, device=self.device)
        lengths = torch.tensor([len(prompt) for prompt in distinct], device=self.device)
        self.used = width  # tokens that are known, padding among them
        places = torch.arange(width, device=self.device)
        self.mask = (places < shared) | (places >= width - lengths[:, None] + shared)
        if shared:
            self._forward(ids[:1, :shared], places[None, :shared], self.mask[:1, :shared].long())
            select_rows(self.cache, torch.zeros(len(distinct), dtype=torch.long, device=self.device))
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        logits = self._forward(ids[:, shared:], positions[:, shared:], self.mask.long())
        index = {prompt: place for place, prompt in enumerate(distinct)}
        sources = range(len(rows)) if engine._fixed_rows else [index[prompt] for prompt in prompts]
        chosen = torch.tensor(sources, device=self.device)
        self.logits, self.ids, self.length = logits[chosen], ids[chosen], lengths[chosen]
        room = self.mask.new_ones(len(distinct), sampling.max_new_tokens)
        self.mask = torch.cat([self.mask, room], dim=1)[chosen]
        if len(distinct) < len(rows):
            select_rows(self.cache, chosen)

    def choose(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The next token of every row and its log-probability: (B,) int64 and (B,) float32.

        Raises NotFiniteError where the model gives no probabilities.
        """
        uniform = self.uniform[:, step]
        return choose(self.process, self.ids, self.logits, uniform, temperature=self.sampling.temperature)

    def advance(self, tokens: torch.Tensor) -> None:
        """Runs the model on the newest tokens (B,), first dropping finished rows where that pays."""
        unfinished = [place for place, row in enumerate(self.rows) if not row.finished]
        if not self.engine._fixed_rows and (len(self.rows) - len(unfinished)) * COMPACT_AT >= len(self.rows):
            tokens = self._keep(unfinished, tokens)
        if self.sampling.repetition_penalty != 1.0:
            self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        self.used += 1
        mask = self.mask[:, : self.used]
        ready = is_buffered(self.cache) and self.engine._config._attn_implementation == "sdpa"
        ready = ready and self.engine._own_masks
        # A ready-made mask: nothing is built per step, and attention never goes unmasked.
        mask = mask[:, None, None] if ready else mask.long()
        self.logits = self._forward(tokens[:, None], self.length[:, None], mask)
        self.length = self.length + 1

    def _keep(self, places: list[int], tokens: torch.Tensor) -> torch.Tensor:
        chosen = torch.tensor(places, device=self.device)
        self.rows = [self.rows[place] for place in places]
        select_rows(self.cache, chosen)
        self.mask, self.ids, self.length = self.mask[chosen], self.ids[chosen], self.length[chosen]
        self.uniform = self.uniform[chosen]
        return tokens[chosen]

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Logits (B, V) in float32 after the last of ``ids`` (B, T)."""
        options: dict[str, object] = {"logits_to_keep": 1} if self.engine._last_only else {}
        if self.engine._positions:
            options["position_ids"] = positions
        if self.engine._cache == STATES_ARGUMENT and ids.shape[1] == 1:
            mask = None  # what a step adds to the states is never padding
        options |= {"attention_mask": mask, self.engine._cache: self.cache}
        output = self.engine.model(input_ids=ids, use_cache=True, **options)
        return output.logits[:, -1].float()  # type: ignore[no-any-return]


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout) for as long as the context lasts."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
