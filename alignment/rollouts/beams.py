"""Beam search: transformers' own, on a batch of prompts."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList

from alignment.errors import NotFiniteError
from alignment.models.seq2seq.architecture import is_encoder_decoder
from alignment.records import Sampling
from alignment.rollouts.encoder_decoder import bare_settings, padded_prompts
from alignment.rollouts.sampling import NOT_FINITE


def best_beams(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, per_prompt: int, stop_ids: Collection[int]
) -> list[list[list[int]]]:
    """The token ids of the ``per_prompt`` best beams of every prompt, best first, with padding behind their ends."""
    if is_encoder_decoder(model.config):  # what the decoder wrote stands behind its start token
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # an adapter is inside of it
        ids, mask = padded_prompts(base, prompts)
        with bare_settings(base):
            return _searched(base, ids, mask.long(), sampling, per_prompt, stop_ids, before=1)
    width, device = max(map(len, prompts)), model.device
    # As in the engine, the padding repeats a token of the row's own, for the repetition penalty's sake.
    ids = torch.tensor([[*[p[0]] * (width - len(p)), *p] for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return _searched(model, ids, mask, sampling, per_prompt, stop_ids, before=width)


def _searched(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    sampling: Sampling,
    per_prompt: int,
    stop_ids: Collection[int],
    *,
    before: int,
) -> list[list[list[int]]]:
    output = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, num_beams=sampling.beams,
        num_return_sequences=per_prompt, max_new_tokens=sampling.max_new_tokens,
        repetition_penalty=sampling.repetition_penalty, eos_token_id=sorted(stop_ids),
        pad_token_id=max([0, *stop_ids]), logits_processor=LogitsProcessorList([_only_finite]),
    )  # fmt: skip
    new: list[list[int]] = output[:, before:].tolist()
    return [new[start : start + per_prompt] for start in range(0, len(new), per_prompt)]


def _only_finite(_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """A logits processor of transformers' own search that changes nothing."""
    if not torch.isfinite(scores.logsumexp(-1)).all():
        raise NotFiniteError(NOT_FINITE)
    return scores
