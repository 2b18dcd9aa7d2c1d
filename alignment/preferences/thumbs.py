"""Answers that were voted up or down, one at a time: what unpaired training (KTO; Ethayarajh et al., 2024) reads."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from alignment.data.feedback import answer_feedback
from alignment.durable_files import write_text
from alignment.errors import Fault, InputError
from alignment.preferences.consensus import current_votes
from alignment.records import Comparison, Feedback, Message, Record, Vote


class LabelledAnswer(Record):
    """An answer that most of its raters call good (``label``) or bad.

    ``agreement`` is the share of the votes that say so, of all that judged: skips do not count, flags do.
    """

    id: str  # the comparison's
    prompt: tuple[Message, ...] = Field(min_length=1)
    completion: str
    label: bool
    raters: int = Field(ge=1)
    agreement: float = Field(gt=0, le=1)
    finished: bool = True
    kind: str = "general"  # of its prompt

    def feedback(self) -> Feedback:
        """The same, as training reads it."""
        return answer_feedback(self.prompt, self.completion, self.label, kind=self.kind, finished=self.finished)


def labelled_answers(
    comparisons: Sequence[Comparison], votes: Iterable[Vote], min_agreement: float = 0.0
) -> list[LabelledAnswer]:
    """The answers that are up or down by a majority of at least ``min_agreement``; level ones are left out.

    In the order of ``comparisons``; comparisons of several answers say nothing here.
    """
    counts: dict[str, Counter[str]] = {one.id: Counter() for one in comparisons if len(one.responses) == 1}
    for vote in current_votes(votes):
        if vote.comparison_id in counts:
            counts[vote.comparison_id][vote.outcome] += 1
    labelled = []
    for comparison in comparisons:
        said = counts.get(comparison.id, Counter())
        judged = said.total() - said["skipped"]
        if said["up"] == said["down"] or max(said["up"], said["down"]) < min_agreement * judged:
            continue
        answer = comparison.responses[0]
        labelled.append(
            LabelledAnswer(id=comparison.id, prompt=comparison.prompt.messages, completion=answer.text,
                           label=said["up"] > said["down"], raters=judged, finished=answer.finished,
                           kind=comparison.prompt.kind,
                           agreement=max(said["up"], said["down"]) / judged)
        )  # fmt: skip
    return labelled


def write_labelled_answers(
    path: Path, answers: Sequence[LabelledAnswer], form: Literal["messages", "text"] = "messages"
) -> str:
    """Writes TRL's unpaired columns as .jsonl, with ``raters`` and ``agreement``. Returns the digest of the answers.

    Raises InputError for another file name, or where ``form`` is "text" and a prompt is more than one message.
    """
    if path.suffix != ".jsonl":
        raise InputError([Fault("the format is not known by its name", "use .jsonl", file=str(path))])
    rows = [_row(one, form, str(path), number) for number, one in enumerate(answers, 1)]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return records_digest(answers)


def records_digest(records: Sequence[Record]) -> str:
    """SHA-256 of records in their order."""
    digest = hashlib.sha256()
    for one in records:
        digest.update(json.dumps(one.model_dump(mode="json"), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _row(answer: LabelledAnswer, form: str, path: str, number: int) -> dict[str, Any]:
    prompt: Any = [message.model_dump(mode="json") for message in answer.prompt]
    completion: Any = [{"role": "assistant", "content": answer.completion}]
    if form == "text":
        if len(answer.prompt) > 1:
            problem = "a conversation of several messages is no text"
            raise InputError([Fault(problem, "write messages instead", path, number, "prompt")])
        prompt, completion = answer.prompt[0].content, answer.completion
    more: dict[str, Any] = {} if answer.finished else {"finished": False}
    more |= {} if answer.kind == "general" else {"kind": answer.kind}
    return {"prompt": prompt, "completion": completion, "label": answer.label} | more | {
        "raters": answer.raters, "agreement": answer.agreement,
    }  # fmt: skip
