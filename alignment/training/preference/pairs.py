"""The pairs that a preference stage trains on: read, sifted, counted, and as the columns that TRL's collator reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from transformers import PreTrainedTokenizerBase

from alignment.chat import PairTokens
from alignment.data.jsonl import read_records
from alignment.errors import StageError
from alignment.records import PreferencePair
from alignment.stage import StageContext
from alignment.training.row_counts import cut_remedy, duplicates_before, log_counts, sift_pairs

PairColumns: TypeAlias = dict[str, list[int]]
"""``prompt_ids``, ``chosen_ids``, ``rejected_ids``."""


class PairSettings(Protocol):
    """What all kinds that train on pairs have: the module of any one kind would be in the others' cache keys."""

    @property
    def preferences(self) -> str: ...
    @property
    def max_length(self) -> int: ...
    @property
    def cut_chosen(self) -> Literal["drop", "keep"]: ...


@dataclass(frozen=True, slots=True)
class TrainingPairs:
    """What is learned from, and how many pairs of each sort there were: the stage's metrics."""

    rows: list[PairColumns]
    counts: dict[str, float]


def read_training_pairs(
    settings: PairSettings, context: StageContext, tokenizer: PreTrainedTokenizerBase
) -> TrainingPairs:
    """The pairs of ``settings.preferences`` that teach something. Raises StageError where none does."""
    pairs = read_records(Path(context.inputs[settings.preferences].path) / "pairs.jsonl", PreferencePair)
    sifted = sift_pairs(pairs, tokenizer, settings.max_length, whole=False, cut_chosen=settings.cut_chosen)
    if not sifted.learnable:
        raise StageError(why_no_pair(sifted.counts, settings.max_length))
    rows = [pair_columns(tokens) for _pair, tokens in sifted.learnable]
    counts = sifted.counts | {"pairs": float(len(rows))}
    counts["duplicates"] += duplicates_before(context, settings.preferences)
    log_counts(context, counts)
    return TrainingPairs(rows, counts)


def pair_columns(tokens: PairTokens) -> PairColumns:
    """A pair as TRL's preference collator reads it."""
    return {"prompt_ids": tokens.prompt, "chosen_ids": tokens.chosen, "rejected_ids": tokens.rejected}


def why_no_pair(counts: Mapping[str, float], max_length: int) -> str:
    """Why a stage has no pair to train on, and what to do."""
    if counts["identical"]:
        problem = f"the answers of every pair are the same within max_length={max_length} tokens"
    elif counts["dropped"]:
        problem = f"every prompt alone fills max_length={max_length} tokens; raise it"
    else:
        problem = "no pair is left to train on"
    return problem + cut_remedy(counts)
