"""The pair classifier as a judge: the log-odds that the first answer is preferred."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment.chat import render_prompt
from alignment.judges.prompts import conversation, shortened, shown_answers
from alignment.judges.protocol import JudgeUsage, PairJudgement, bounded, gives_orders
from alignment.models.reward_model import score
from alignment.recipe.judges import PairClassifierJudge
from alignment.records import Comparison, Message
from alignment.text_rules.encoder import encoder_comparison, reads_as_encoder

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
    if reads_as_encoder(tokenizer):
        return encoder_comparison(tokenizer, question, (answers[0], answers[1]), max_answer_tokens)
    a, b = (shortened(tokenizer, text, max_answer_tokens) for text in answers)
    text = f"Question: {question}\n\nAnswer A: {a}\n\nAnswer B: {b}"
    return render_prompt(tokenizer, [Message(role="user", content=text)])
