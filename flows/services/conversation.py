"""A conversation with one version or two, and the training data that it becomes.

Two versions answer the same turns: the better answer goes on as the assistant's turn for both, or the first where
nothing is said. So what was preferred is a pair of answers to one prompt.
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from alignment.data.demonstrations import read_demonstrations
from alignment.data.preferences import preference_rows, read_preferences
from alignment.digests import pair_id, prompt_id
from alignment.durable_files import temporary_beside, write_text
from alignment.errors import Fault, InputError
from alignment.records import Message, PreferencePair


@dataclass(frozen=True, slots=True)
class SpokenAnswer:
    """What a version said; ``finished`` is False where it was cut off at its longest length."""

    text: str
    finished: bool


@dataclass(slots=True)
class Conversation:
    """Turns so far. ``answers`` are those to the last turn of the user; ``better`` is the preferred one's place."""

    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    answers: list[SpokenAnswer] = field(default_factory=list)
    better: int | None = None
    attempt: int = 0
    _pairs: dict[tuple[Message, ...], PreferencePair] = field(default_factory=dict)  # by their prompts
    _cut_off: bool = False  # among the turns is an answer without its end

    def asked(self, text: str) -> "Conversation":
        """The conversation with a further turn of the user; this one stays as it is."""
        turns, cut_off = list(self.turns), self._cut_off
        if self.answers:
            taken = self.answers[self.better or 0]
            turns.append(Message(role="assistant", content=taken.text))
            cut_off = cut_off or not taken.finished
        turns.append(Message(role="user", content=text))
        return Conversation(self.system, turns, _pairs=dict(self._pairs), _cut_off=cut_off)

    def retried(self) -> "Conversation":
        """The conversation with its last turn unanswered, to be answered anew. Raises InputError where none is."""
        self._require_answer("/retry")
        pairs = {prompt: pair for prompt, pair in self._pairs.items() if prompt != self.messages()}
        return replace(self, answers=[], better=None, attempt=self.attempt + 1, _pairs=pairs)

    def begun_anew(self, system: str | None) -> "Conversation":
        """A conversation without turns, under another system message or none; what was preferred can still be saved."""
        return Conversation(system, _pairs=dict(self._pairs))

    def messages(self) -> tuple[Message, ...]:
        """What the versions are to answer: the system message, where there is one, and the turns."""
        first = () if self.system is None else (Message(role="system", content=self.system),)
        return (*first, *self.turns)

    def prefer(self, number: int) -> None:
        """Takes the first (1) or second (2) answer for the better. Raises InputError where there are no two."""
        if len(self.answers) != 2:
            problem, remedy = "there are no two answers to choose from", "name two versions: rlhf chat A B"
            raise InputError([Fault(problem, remedy, field="/better")])
        chosen, rejected = self.answers[number - 1], self.answers[2 - number]
        if chosen.text.strip() == rejected.text.strip():
            raise InputError([Fault("both answers say the same", "/retry, or ask something else", field="/better")])
        prompt = self.messages()
        self.better = number - 1
        self._pairs[prompt] = PreferencePair(
            id=pair_id(prompt, chosen.text, rejected.text),
            prompt_id=prompt_id(prompt),
            prompt=prompt,
            chosen=chosen.text,
            rejected=rejected.text,
            chosen_finished=chosen.finished,
            rejected_finished=rejected.finished,
        )

    def save(self, path: Path, *, pairs: bool) -> int:
        """Adds what the conversation taught to a .jsonl file: its pairs, or itself as a demonstration.

        Returns how many rows are new. The file is read back before it takes its name. Raises InputError where there is
        nothing to save, or the file would not be read.
        """
        rows = self._pair_rows() if pairs else [self._demonstration()]
        if path.suffix != ".jsonl":
            raise InputError([Fault("the format is not known by its name", "use .jsonl", file=str(path))])
        try:
            before = path.read_text("utf-8").split("\n") if path.exists() else []
        except (OSError, UnicodeError) as error:
            raise InputError(
                [Fault(f"cannot be read: {_reason(error)}", "save into another file", file=str(path))]
            ) from error
        before = [line for line in before if line.strip()]
        new = [line for line in dict.fromkeys(rows) if line not in before]
        temporary = temporary_beside(path).with_suffix(".jsonl")
        try:
            write_text(temporary, "".join(f"{line}\n" for line in [*before, *new]))
            _ = read_preferences(temporary) if pairs else read_demonstrations(temporary)
            temporary.replace(path)
        except InputError as error:
            raise InputError([replace(fault, file=str(path)) for fault in error.faults]) from error
        except OSError as error:
            raise InputError(
                [Fault(f"cannot be written: {_reason(error)}", "save elsewhere", file=str(path))]
            ) from error
        finally:
            with contextlib.suppress(OSError):  # there was no folder for it; what led here is told
                temporary.unlink(missing_ok=True)
        return len(new)

    def _pair_rows(self) -> list[str]:
        if not self._pairs:
            raise InputError([Fault("no answer was preferred yet", "say /better 1 or /better 2 first", field="/save")])
        return _lines(preference_rows(list(self._pairs.values())))

    def _demonstration(self) -> str:
        self._require_answer("/save")
        answer = self.answers[self.better or 0]
        if self._cut_off or not answer.finished:
            problem = "an answer was cut off, and a demonstration would teach to stop there"
            raise InputError([Fault(problem, "/retry, or begin with a higher --max-new-tokens", field="/save")])
        whole = (*self.messages(), Message(role="assistant", content=answer.text))
        return _lines([{"messages": [message.model_dump() for message in whole]}])[0]

    def _require_answer(self, command: str) -> None:
        if not self.answers:
            raise InputError([Fault("nothing was answered yet", "ask something first", field=command)])


def _lines(rows: Sequence[dict[str, object]]) -> list[str]:
    return [json.dumps(row, ensure_ascii=False) for row in rows]


def _reason(error: OSError | UnicodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8"
