"""Questions with one right answer, and solved examples of them."""

from functools import partial
from pathlib import Path

from alignment.data.columns import fail, optional_text
from alignment.data.jsonl import Row, scan_parsed
from alignment.data.prompts import parse_prompt
from alignment.errors import Fault
from alignment.records import Prompt, Record

GSM8K_MARKER = "####"  # between the reasoning and the answer (Cobbe et al. 2021)


class Question(Record):
    """A question, its right answer, and how the answer is found where that is known."""

    prompt: Prompt
    answer: str
    reasoning: str | None = None

    @property
    def text(self) -> str:
        """What is asked: the last turn."""
        return self.prompt.messages[-1].content


NumberedQuestions = list[tuple[int, Question]]


def scan_questions(path: Path) -> tuple[NumberedQuestions, list[Fault]]:
    """The questions of the rows that are right, with the rows, and the faults of the others.

    A row is that of a prompt with a ``reference``, which is the right answer, and may hold ``reasoning``. The columns
    ``question`` and ``answer`` are read as well; an answer may hold its reasoning before ``####``. The same question
    twice is a fault: it would count twice.
    """
    rows, faults = scan_parsed(path, parse_question)
    seen: dict[str, int] = {}
    for number, question in rows:
        first = seen.setdefault(question.prompt.id, number)
        if first != number:
            problem = f"the question of row {first} again, which would count twice"
            faults.append(Fault(problem, "keep one of the two rows", str(path), number))
    kept = [(number, one) for number, one in rows if seen[one.prompt.id] == number]
    return kept, sorted(faults, key=lambda fault: fault.row or 0)


def parse_question(row: Row) -> Question:
    """The question of one row. Raises InputError with its faults."""
    if "question" in row and "prompt" not in row and "messages" not in row:
        row = {"prompt" if name == "question" else name: value for name, value in row.items()}
    if "answer" in row and "reference" not in row:
        row = {"reference" if name == "answer" else name: value for name, value in row.items()}
    prompt = parse_prompt(row)
    reasoning, answer = optional_text(row, "reasoning"), prompt.reference
    if answer is None or not answer.strip():
        fail("no right answer", 'give it in the column "reference" (or "answer")', "reference")
    if reasoning is None and GSM8K_MARKER in answer and "instruction_id_list" not in row:
        reasoning, _, answer = map(partial(str.strip), answer.rpartition(GSM8K_MARKER))
        if not answer:
            fail(f"nothing after {GSM8K_MARKER}", "write the right answer there", "reference")
    return Question(prompt=prompt, answer=answer.strip(), reasoning=reasoning)
