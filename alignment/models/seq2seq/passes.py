"""The decoder's logits of given targets, by a model's own forward pass.

Trainers hold a prompt and its answer in one row, as for a decoder alone. Here the row is parted again: the encoder
reads the prompt, and the decoder its start token and the answer up to before its last token.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from alignment.models.seq2seq.architecture import decoder_start

IGNORED = -100  # the label of what is no target


class Parted(NamedTuple):
    """A batch in its two parts: prompts (B, P) with ``prompt_mask``, and targets (B, T) with ``target_mask``."""

    prompts: torch.Tensor
    prompt_mask: torch.Tensor
    targets: torch.Tensor
    target_mask: torch.Tensor


def part_rows(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, labels: torch.Tensor, pad: int) -> Parted:
    """Rows (B, L) of prompt, answer and padding, and ``labels`` (B, L), -100 but at the answer → their two parts.

    Padding becomes ``pad`` in both. Raises ValueError where an answer is not one piece behind its prompt.
    """
    mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    learned = labels != IGNORED
    before = mask & ~learned
    starts, counts = before.sum(-1), learned.sum(-1)
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    inside = (places >= starts[:, None]) & (places < (starts + counts)[:, None])
    if not torch.equal(inside, learned) or not torch.equal(before, places < starts[:, None]):
        raise ValueError("an encoder-decoder learns one answer, behind its prompt and in one piece")
    width = int(starts.max())
    prompts = input_ids[:, :width].masked_fill(~before[:, :width], pad)
    steps = torch.arange(max(1, int(counts.max())), device=input_ids.device)
    target_mask = steps < counts[:, None]
    found = input_ids.gather(1, (starts[:, None] + steps).clamp(max=input_ids.shape[1] - 1))
    return Parted(prompts, before[:, :width], found.masked_fill(~target_mask, pad), target_mask)


def decoder_inputs(model: Any, targets: torch.Tensor) -> torch.Tensor:
    """What the decoder reads to write ``targets`` (B, T): its start token, and the targets but their last."""
    start = targets.new_full((len(targets), 1), decoder_start(model))
    return torch.cat([start, targets[:, :-1]], dim=1)


def target_logits(model: Any, parted: Parted) -> torch.Tensor:
    """The model's own logits (N, V) of all targets' tokens, row after row. ``model`` is without PEFT's wrapper."""
    output = type(model).forward(
        model,
        input_ids=parted.prompts,
        attention_mask=parted.prompt_mask.long(),
        decoder_input_ids=decoder_inputs(model, parted.targets),
        use_cache=False,
    )
    logits: torch.Tensor = output.logits[parted.target_mask]
    return logits


def part_answers(model: Any, answers: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Parted:
    """(prompt, answer) token ids → the two parts of a batch, on the model's device."""
    pad = model.config.pad_token_id or 0
    width = max(len(prompt) + len(answer) for prompt, answer in answers)
    ids = torch.full((len(answers), width), pad)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(answers):
        end = len(prompt) + len(answer)
        ids[row, :end] = labels[row, :end] = torch.tensor([*prompt, *answer])
        labels[row, : len(prompt)] = IGNORED
        mask[row, :end] = 1
    return part_rows(ids.to(model.device), mask.to(model.device), labels.to(model.device), pad)
