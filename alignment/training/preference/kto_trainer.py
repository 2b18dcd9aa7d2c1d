"""TRL's KTO trainer on answers that we tokenised, and the mismatched answers by which it estimates the KL."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trl import KTOTrainer

from alignment.training.preference.tokenised import Tokenised


@dataclass(frozen=True, slots=True)
class MarkedAnswer:
    """Token ids of a prompt and an answer, and whether the answer was found good."""

    prompt: list[int]
    completion: list[int]
    label: bool


class TokenisedKTOTrainer(Tokenised, KTOTrainer):  # type: ignore[misc]  # TRL is untyped
    """TRL's trainer, taking the columns that ours already tokenised instead of tokenising by itself."""


def kto_columns(answers: Sequence[MarkedAnswer], batch_size: int, *, mismatched: bool) -> list[dict[str, Any]]:
    """The columns that TRL's collator reads, in an order that training keeps.

    With ``mismatched`` each row has an answer to another prompt beside its own, of the same batch where that has one:
    the KL of a batch is estimated on its own answers, paired with other prompts (Ethayarajh et al. 2024, section 4.1).
    TRL's rotation would pair the two answers of a preference pair with each other's prompt, which is the same one.
    """
    rows: list[dict[str, Any]] = [
        {"prompt_ids": one.prompt, "completion_ids": one.completion, "label": one.label} for one in answers
    ]
    if mismatched:
        for place, row in enumerate(rows):
            row["KL_completion_ids"] = answers[_other(answers, place, batch_size)].completion
    return rows


def _other(answers: Sequence[MarkedAnswer], place: int, batch_size: int) -> int:
    """The place of an answer to another prompt: the next before it in its batch, going round; else in all of them.

    Where all prompts are one, that of the answer before.
    """
    first = place - place % batch_size
    size = min(batch_size, len(answers) - first)
    batch = [first + (place - first - step) % size for step in range(1, size)]
    everywhere = [(place - step) % len(answers) for step in range(1, len(answers))]
    other = (at for at in (*batch, *everywhere) if answers[at].prompt != answers[place].prompt)
    return next(other, (place - 1) % len(answers))
