"""A local model that answers judges' questions."""

from collections.abc import Sequence
from typing import Any

from alignment.chat import render_prompt
from alignment.judges.llm_judge import Reply, Wording
from alignment.judges.prompts import JudgePrompt
from alignment.judges.protocol import JudgeUsage
from alignment.models.families import stop_ids
from alignment.records import Sampling
from alignment.rollouts.transformers_engine import TransformersEngine


class LocalAsker:
    """A model of this process that writes.

    Each call stands for itself: what it was asked before would change who shares a batch, and with it the last bits.
    """

    def __init__(self, settings: Wording, model: Any, tokenizer: Any, seed: int) -> None:
        self.settings, self.tokenizer, self.seed = settings, tokenizer, seed
        self.engine = TransformersEngine(model, tokenizer, stop_ids=stop_ids(model, tokenizer))
        self.tally = JudgeUsage()

    async def ask(self, questions: Sequence[JudgePrompt], /) -> list[Reply]:
        rows = [tuple(render_prompt(self.tokenizer, question.messages)) for question in questions]
        fresh = list(dict.fromkeys(rows))
        replies: dict[tuple[int, ...], Reply] = {}
        sampling = Sampling(temperature=self.settings.temperature, max_new_tokens=self.settings.max_tokens)
        drawn = self.engine.generate(fresh, sampling=sampling, seeds=[self.seed] * len(fresh)) if fresh else []
        for row, (completion,) in zip(fresh, drawn, strict=True):
            replies[row] = Reply(completion.text, finished=completion.finished, tokens=len(completion.tokens))
            self.tally.answer_tokens += len(completion.tokens)
        self.tally.asked += len(fresh)
        self.tally.prompt_tokens += sum(map(len, fresh))
        return [replies[row] for row in rows]
