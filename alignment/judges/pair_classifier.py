"""The pair classifier as a judge: the log-odds that the first answer is preferred; and the rows that it learns from."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.chat import render_prompt
from alignment.judges.prompts import conversation, shortened, shown_answer, shown_answers
from alignment.judges.protocol import JudgeUsage, PairJudgement, bounded, gives_orders
from alignment.models.reward_model import score
from alignment.recipe.judges import PairClassifierJudge
from alignment.recipe.stages.training import CutChosen
from alignment.records import Comparison, Message, PreferencePair
from alignment.training.row_counts import Counts, usable_pairs

FILE = "pair_classifier.json"


class ClassifierJudge:
    """See :class:`~alignment.recipe.judges.PairClassifierJudge`."""

    def __init__(self, settings: PairClassifierJudge, folder: Path, model: Any, tokenizer: Any) -> None:
        self.settings, self.model, self.tokenizer = settings, model, tokenizer
        self.max_answer_tokens: int = json.loads((folder / FILE).read_text("utf-8"))["max_answer_tokens"]
        self.name = f"pair classifier {settings.model}"
        self.tally = JudgeUsage()

    async def judge(self, comparisons: Sequence[Comparison], /) -> list[PairJudgement]:
        shown = [one for one in comparisons if not any(gives_orders(response.text) for response in one.responses)]
        rows = []
        for one in shown:
            left, right = shown_answers(one)
            question = conversation(one.prompt.messages)
            orders = ((left, right), (right, left))
            rows += [encoded(self.tokenizer, question, texts, self.max_answer_tokens) for texts in orders]
        self.tally.asked += len(rows)
        self.tally.prompt_tokens += sum(map(len, rows))
        odds = score(self.model, self.tokenizer, rows, batch_size=self.settings.batch_size) if rows else []
        found = {
            one.id: PairJudgement(
                comparison_id=one.id, left_first=bounded(odds[2 * place]), left_last=bounded(0.0 - odds[2 * place + 1])
            )
            for place, one in enumerate(shown)
        }
        return [found.get(one.id) or PairJudgement(comparison_id=one.id, note="suspect") for one in comparisons]


def encoded(tokenizer: Any, question: str, answers: Sequence[str], max_answer_tokens: int) -> list[int]:
    """The token ids of a prompt and two answers in their order."""
    a, b = (shortened(tokenizer, text, max_answer_tokens) for text in answers)
    text = f"Question: {question}\n\nAnswer A: {a}\n\nAnswer B: {b}"
    return render_prompt(tokenizer, [Message(role="user", content=text)])


@dataclass(frozen=True, slots=True)
class SiftedOrders:
    """Rows that there is something to learn from, and the ``counts`` of all others; both orders of a pair are rows."""

    rows: list[dict[str, Any]]
    counts: Counts


def both_orders(tokenizer: Any, pair: PreferencePair, max_answer_tokens: int) -> list[dict[str, Any]]:
    """A pair in both orders, with what the first answer is: 1 for the chosen one, 0 for the other."""
    question = conversation(pair.prompt)
    chosen = shown_answer(pair.chosen, finished=pair.chosen_finished)
    rejected = shown_answer(pair.rejected, finished=pair.rejected_finished)
    return [
        {"input_ids": encoded(tokenizer, question, answers, max_answer_tokens), "labels": [label]}
        for answers, label in (((chosen, rejected), 1.0), ((rejected, chosen), 0.0))
    ]


def sift_orders(
    pairs: Sequence[PreferencePair],
    tokenizer: Any,
    max_length: int,
    *,
    max_answer_tokens: int,
    cut_chosen: CutChosen,
) -> SiftedOrders:
    """The rows that a pair classifier learns from."""
    usable, counts = usable_pairs(pairs, cut_chosen)
    both = [both_orders(tokenizer, pair, max_answer_tokens) for pair in usable]
    distinct = [orders for orders in both if orders[0]["input_ids"] != orders[1]["input_ids"]]
    rows = [row for orders in distinct for row in orders]
    fitting = [row for row in rows if len(row["input_ids"]) <= max_length]
    return SiftedOrders(
        fitting,
        counts | {"dropped": float(len(rows) - len(fitting)), "identical": float(len(both) - len(distinct))},
    )
