"""From two dialogues to one preference pair, the same for every file format."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from alignment.data.columns import Messages
from alignment.data.conversations import same_turns
from alignment.digests import pair_id, prompt_id
from alignment.errors import Fault
from alignment.records import Message, PreferencePair


class Skip(StrEnum):
    """Why a pair of a published corpus teaches nothing and is left out; counted, never silent."""

    DIVERGED = "the dialogues differ before the last answer"
    IDENTICAL = "chosen and rejected are identical"
    EMPTY = "a turn or an answer is empty"
    DUPLICATE = "the same pair again"
    TIED = "two answers share a rank"
    UNRANKED = "an answer has no rank"
    DELETED = "a message was deleted by its community"


@dataclass(frozen=True, slots=True)
class PreferenceFile:
    """What a preference file holds: its pairs, the pairs left out by reason, and each pair's row by its id."""

    pairs: list[PreferencePair]
    skipped: dict[Skip, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)  # of rows that could not be read


def compare(
    chosen: Sequence[Message],
    rejected: Sequence[Message],
    *,
    margin: float | None = None,
    kind: str = "general",
    finished: tuple[bool, bool] = (True, True),
) -> PreferencePair | Skip:
    """The pair that two whole dialogues make, each ending with the assistant's answer.

    The prompt is all turns before the last answer; both dialogues must agree on it, because an answer can only be
    preferred to another one to the same question.
    """
    if not same_turns(chosen[:-1], rejected[:-1]):
        return Skip.DIVERGED
    return answer_pair(
        tuple(chosen[:-1]), chosen[-1].content, rejected[-1].content, margin=margin, kind=kind, finished=finished
    )


def answer_pair(
    prompt: Messages,
    chosen: str,
    rejected: str,
    *,
    margin: float | None = None,
    kind: str = "general",
    finished: tuple[bool, bool] = (True, True),
) -> PreferencePair | Skip:
    """The pair of two answers to one prompt; answers that differ in outer white space only are identical.

    ``finished``: whether each of them, the chosen one first, ended by itself.
    """
    if not all(said.strip() for said in (*(turn.content for turn in prompt), chosen, rejected)):
        return Skip.EMPTY
    if chosen.strip() == rejected.strip():
        return Skip.IDENTICAL
    return PreferencePair(
        id=pair_id(prompt, chosen, rejected),
        prompt_id=prompt_id(prompt),
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        margin=margin,
        kind=kind,
        chosen_finished=finished[0],
        rejected_finished=finished[1],
    )
