"""A reward model as a judge."""

from collections.abc import Sequence
from typing import Any

from alignment.chat import render_response
from alignment.judges.protocol import JudgeUsage, PairJudgement, bounded, gives_orders
from alignment.recipe.judges import (
    RewardModelJudge,
)
from alignment.records import Comparison


class RewardJudge:
    """See :class:`~alignment.recipe.judges.RewardModelJudge`."""

    def __init__(self, settings: RewardModelJudge, model: Any, tokenizer: Any) -> None:
        self.settings, self.model, self.tokenizer = settings, model, tokenizer
        self.name = f"reward model {settings.model}"
        self.tally = JudgeUsage()

    async def judge(self, comparisons: Sequence[Comparison], /) -> list[PairJudgement]:
        from alignment.models.reward_model import score  # brings TRL along

        shown = [one for one in comparisons if not any(gives_orders(response.text) for response in one.responses)]
        wanted = {_key(one, place): one.prompt.messages for one in shown for place in (0, 1)}
        rows = [
            render_response(self.tokenizer, messages, text, finished=finished)
            for (_id, text, finished), messages in wanted.items()
        ]
        self.tally.asked += len(rows)
        self.tally.prompt_tokens += sum(map(len, rows))
        scores = dict(
            zip(wanted, score(self.model, self.tokenizer, rows, batch_size=self.settings.batch_size), strict=True)
        )
        leads = {one.id: bounded(scores[_key(one, 0)] - scores[_key(one, 1)]) for one in shown}
        return [
            PairJudgement(comparison_id=one.id, left_first=leads[one.id], left_last=leads[one.id])
            if one.id in leads
            else PairJudgement(comparison_id=one.id, note="suspect")
            for one in comparisons
        ]


def _key(comparison: Comparison, place: int) -> tuple[str, str, bool]:
    """What a reward model is told of an answer."""
    answer = comparison.responses[place]
    return comparison.prompt.id, answer.text, answer.finished
