"""The judge that reads its verdict from the logits of answer tokens, so that even a 135M model can give one.

All its questions begin alike: template, instruction, examples. That beginning is run through the model once, and what
is the same in both orders of a pair, or in all pairs of one prompt, is computed once as well
(:mod:`alignment.judges.label_logits`).
"""

from collections.abc import Sequence
from typing import Any

import torch

from alignment.chat import render_prompt
from alignment.judges.label_logits import LabelReader
from alignment.judges.prompts import conversation, shortened, shown_answers, shown_examples
from alignment.judges.protocol import JudgeUsage, PairJudgement, bounded, gives_orders
from alignment.models.prefix_sharing import common_prefix
from alignment.recipe.judges import LabelProbabilitiesJudge
from alignment.records import Comparison, Message, Prompt

LABELS = ("A", "B")
GRADES = ("1", "2", "3", "4", "5")


class LabelJudge:
    """See :class:`~alignment.recipe.judges.LabelProbabilitiesJudge`."""

    def __init__(self, settings: LabelProbabilitiesJudge, model: Any, tokenizer: Any, name: str) -> None:
        self.settings, self.tokenizer, self.name = settings, tokenizer, name
        self.tally = JudgeUsage()
        labels = GRADES if settings.form == "score" else LABELS
        self.reader = LabelReader(model, tokenizer, labels, self._lead(), self._beginning())

    async def judge(self, comparisons: Sequence[Comparison], /) -> list[PairJudgement]:
        size = self.settings.batch_size
        return [
            judgement
            for start in range(0, len(comparisons), size)
            for judgement in self._judge(comparisons[start : start + size])
        ]

    def _judge(self, comparisons: Sequence[Comparison]) -> list[PairJudgement]:
        shown = [one for one in comparisons if not any(gives_orders(response.text) for response in one.responses)]
        read = self._scored(shown) if self.settings.form == "score" else self._compared(shown)
        found = {one.id: orders for one, orders in zip(shown, read, strict=True)}
        return [
            PairJudgement(comparison_id=one.id, left_first=found[one.id][0], left_last=found[one.id][1])
            if one.id in found
            else PairJudgement(comparison_id=one.id, note="suspect")
            for one in comparisons
        ]

    def _compared(self, comparisons: Sequence[Comparison]) -> list[tuple[float | None, float | None]]:
        rows = []
        for comparison in comparisons:
            left, right = shown_answers(comparison)
            rows += [self._rows(comparison.prompt, (left, right)), self._rows(comparison.prompt, (right, left))]
        odds = [self._odds(logits, mass) for logits, mass in self._read(rows)]
        return [(odds[i], None if (last := odds[i + 1]) is None else -last) for i in range(0, len(odds), 2)]

    def _scored(self, comparisons: Sequence[Comparison]) -> list[tuple[float | None, float | None]]:
        """Each answer by itself; the lead in grades, in units in which one grade is e to one."""
        wanted = {
            (comparison.prompt.id, text): comparison.prompt
            for comparison in comparisons
            for text in shown_answers(comparison)
        }
        rows = [self._rows(prompt, (text,)) for (_id, text), prompt in wanted.items()]
        grades = dict(zip(wanted, (self._grade(*read) for read in self._read(rows)), strict=True))
        leads: list[float | None] = []
        for comparison in comparisons:
            left, right = (grades[comparison.prompt.id, text] for text in shown_answers(comparison))
            leads.append(None if left is None or right is None else bounded(left - right))
        return [(lead, lead) for lead in leads]

    async def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
        """Each answer's score in [0, 1] by itself, of form ``score``; None where none could be read."""
        shown = [place for place, text in enumerate(texts) if not gives_orders(text)]
        read = self._read([self._rows(prompts[place], (texts[place],)) for place in shown])
        scores: list[float | None] = [None] * len(texts)
        for place, one in zip(shown, read, strict=True):
            grade = self._grade(*one)
            scores[place] = None if grade is None else (grade - 1) / (len(GRADES) - 1)
        return scores

    def _read(self, rows: Sequence[list[int]]) -> list[tuple[list[float], float]]:
        self.tally.asked += len(rows)
        self.tally.prompt_tokens += sum(map(len, rows))
        return self.reader.read(rows)

    def _odds(self, logits: list[float], mass: float) -> float | None:
        return None if mass < self.settings.min_label_mass else bounded(logits[0] - logits[1])

    def _grade(self, logits: list[float], mass: float) -> float | None:
        if mass < self.settings.min_label_mass:
            return None
        shares = torch.tensor(logits, dtype=torch.float64).softmax(0).tolist()
        return float(sum(grade * share for grade, share in enumerate(shares, start=1)))

    def _rows(self, prompt: Prompt, texts: Sequence[str]) -> list[int]:
        question = conversation(prompt.messages)
        turns = [*self._examples(question), Message(role="user", content=self._ask(question, texts))]
        return render_prompt(self.tokenizer, turns) + self._lead()

    def _beginning(self) -> list[int]:
        """The tokens that every question begins with: template, examples, instruction."""
        own = self.settings.shots is None or self.settings.choose == "fixed"  # the same examples for every question
        asked = [
            [*(self._examples(text) if own else ()), Message(role="user", content=self._ask(text, ("x", "x")))]
            for text in ("x", "7")
        ]
        one, other = (render_prompt(self.tokenizer, turns) + self._lead() for turns in asked)
        return one[: common_prefix(one, other)]

    def _lead(self) -> list[int]:
        """How the judge's answer begins, up to its label."""
        text = "Grade:" if self.settings.form == "score" else "The better answer is"
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _ask(self, question: str, texts: Sequence[str]) -> str:
        shown = [shortened(self.tokenizer, text, self.settings.max_answer_tokens) for text in texts]
        if self.settings.form == "score":
            return (
                f"{self.settings.question}\nGrade the answer from 1 (bad) to 5 (excellent).\n\n"
                f"Question: {question}\n\nAnswer: {shown[0]}"
            )
        return f"{self.settings.question}\n\nQuestion: {question}\n\nAnswer A: {shown[0]}\n\nAnswer B: {shown[1]}"

    def _examples(self, question: str) -> list[Message]:
        turns = []
        for one in shown_examples(self.settings, self.settings.score_examples, question):
            grade = round(1 + (one.score - 1) * (len(GRADES) - 1) / 9)
            turns.append(Message(role="user", content=self._ask(one.prompt, (one.answer,))))
            turns.append(Message(role="assistant", content=f"Grade: {grade}"))
        for example in shown_examples(self.settings, self.settings.examples, question):
            turns.append(Message(role="user", content=self._ask(example.prompt, (example.a, example.b))))
            turns.append(Message(role="assistant", content=f"The better answer is {example.verdict}"))
        return turns
