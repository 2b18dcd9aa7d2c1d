"""Documents as rows of one length, without padding: what a language model is pretrained on.

All documents stand one behind another, each with its EOS, and are cut every ``length`` tokens (Brown et al. 2020). What
is left at the end, less than a row, is not trained on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

IGNORED = -100  # the label that is not learned


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows of tokens (N, length) and the document that each token is of, by number. ``left`` tokens are in no row."""

    tokens: torch.Tensor
    documents: torch.Tensor
    left: int


def pack(documents: Iterable[Sequence[int]], length: int, *, filler: int | None = None) -> Packed:
    """Cuts documents (tokens, EOS included) into rows of ``length``.

    Args:
        filler: a token with which the last row is filled up, as no document's (-1); None: what does not fill a row is
            left out.
    """
    whole = [np.asarray(document, dtype=np.int32) for document in documents]
    tokens = np.concatenate(whole) if whole else np.zeros(0, np.int32)
    numbers = np.repeat(np.arange(len(whole), dtype=np.int32), [len(document) for document in whole])
    left = len(tokens) % length
    if filler is not None and left:
        tokens = np.concatenate([tokens, np.full(length - left, filler, np.int32)])
        numbers = np.concatenate([numbers, np.full(length - left, -1, np.int32)])
        left = 0
    kept = len(tokens) - left
    return Packed(
        torch.from_numpy(tokens[:kept].reshape(-1, length)), torch.from_numpy(numbers[:kept].reshape(-1, length)), left
    )


class PackedRows(Dataset[dict[str, torch.Tensor]]):
    """Rows as a trainer takes them: ``input_ids`` and ``labels`` (length,), and where documents are ``isolated`` the
    ``position_ids`` that begin anew with each: families that make their mask from them keep documents apart."""

    def __init__(self, packed: Packed, *, isolated: bool) -> None:
        self.packed, self.isolated = packed, isolated

    def __len__(self) -> int:
        return len(self.packed.tokens)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        tokens, documents = self.packed.tokens[row].long(), self.packed.documents[row]
        labels = torch.where(documents >= 0, tokens, IGNORED)
        if not self.isolated:
            return {"input_ids": tokens, "labels": labels}
        place = torch.arange(len(tokens))
        begins = torch.ones(len(tokens), dtype=torch.bool)
        begins[1:] = documents[1:] != documents[:-1]
        positions = place - torch.where(begins, place, 0).cummax(0).values
        return {"input_ids": tokens, "labels": torch.where(begins, IGNORED, labels), "position_ids": positions}


def stacked(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows as one batch."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def batches(rows: PackedRows, size: int) -> Iterable[dict[str, Any]]:
    """Rows in their order, ``size`` at a time, each with its ``documents``."""
    for start in range(0, len(rows), size):
        places = range(start, min(start + size, len(rows)))
        yield stacked([rows[place] for place in places]) | {"documents": rows.packed.documents[start : places.stop]}


def encode_document(tokenizer: Any, document: str) -> list[int]:
    """A document's tokens and EOS. What reads like a special token in it is text."""
    ids: list[int] = tokenizer(document, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [*ids, tokenizer.eos_token_id]
