"""Answers that were paid for, kept on disk by the content of their question, and what was spent on them.

    <folder>/ab/abcd….json      one answer: its text, its tokens and its price

A budget counts every answer that a stage uses, whenever it was paid for. So a run that is repeated does not spend it
again, and a budget that is raised by some amount allows that amount more.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alignment.digests import digest_of
from alignment.durable_files import write_text
from alignment.judges.protocol import JudgeUsage
from alignment.recipe.judges import Budget, Price
from alignment.records import Record

BYTES_PER_TOKEN = 3  # a low guess, so that what is set aside for a question is rather too much


class Kept(Record):
    """One answer of an endpoint."""

    text: str
    prompt_tokens: int
    answer_tokens: int
    money: float
    finished: bool = True  # False: cut off at its longest length


class Answers:
    """The answers in a folder, by the digest of what was sent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, sent: Mapping[str, Any]) -> Kept | None:
        """The answer to a request, where it is kept whole."""
        try:
            return Kept.model_validate_json(self._path(sent).read_text("utf-8"))
        except (OSError, ValidationError, UnicodeDecodeError):
            return None

    def keep(self, sent: Mapping[str, Any], answer: Kept) -> None:
        write_text(self._path(sent), answer.model_dump_json() + "\n")

    def _path(self, sent: Mapping[str, Any]) -> Path:
        digest = digest_of(dict(sent))
        return self.folder / digest[:2] / f"{digest}.json"


class Ledger:
    """What was spent, and what is set aside for questions on their way: together never more than the budget."""

    def __init__(self, budget: Budget | None, price: Price, tally: JudgeUsage) -> None:
        self.budget, self.price, self.tally = budget, price, tally
        self.tokens = 0  # set aside
        self.money = 0.0

    def estimate(self, sent: str, max_tokens: int) -> tuple[int, int]:
        """(tokens of a prompt, tokens of its answer), at most or nearly so."""
        return len(sent.encode()) // BYTES_PER_TOKEN + 8, max_tokens

    def set_aside(self, prompt_tokens: int, answer_tokens: int) -> bool:
        """Sets a question's price aside; False where the budget has not enough left."""
        tokens, money = prompt_tokens + answer_tokens, self.cost(prompt_tokens, answer_tokens)
        if not self.affords(tokens, money):
            return False
        self.tokens += tokens
        self.money += money
        return True

    def release(self, prompt_tokens: int, answer_tokens: int) -> None:
        """Gives back what was set aside for a question that has come to its end."""
        self.tokens -= prompt_tokens + answer_tokens
        self.money -= self.cost(prompt_tokens, answer_tokens)

    def affords(self, tokens: int, money: float) -> bool:
        if self.budget is None:
            return True
        spent = self.tally.prompt_tokens + self.tally.answer_tokens + self.tokens + tokens
        over_tokens = self.budget.tokens is not None and spent > self.budget.tokens
        over_money = self.budget.money is not None and self.tally.money + self.money + money > self.budget.money
        return not over_tokens and not over_money

    def spend(self, answer: Kept, *, now: bool) -> None:
        """Counts an answer. ``now``: it was paid for now, not kept from before."""
        self.tally.prompt_tokens += answer.prompt_tokens
        self.tally.answer_tokens += answer.answer_tokens
        self.tally.money += answer.money
        if now:
            self.tally.paid += answer.money
        else:
            self.tally.cached += 1

    def cost(self, prompt_tokens: int, answer_tokens: int) -> float:
        return (prompt_tokens * self.price.prompt + answer_tokens * self.price.answer) / 1e6
