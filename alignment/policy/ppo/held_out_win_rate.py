"""Held-out answers of the policy against those of its start, while it trains.

A reward model is a proxy: past some point a policy raises its score and answers worse (Gao et al. 2022). Whether that
point has come is not in any figure of the training itself, so raters who are not the reward model compare, every few
steps, the policy's greedy answers to prompts that no stage trains on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from alignment.data.jsonl import read_records, write_records
from alignment.digests import content_id
from alignment.preferences.outcomes import rubric_outcomes
from alignment.preferences.simulated_raters import Rater
from alignment.records import Response, Sampling
from alignment.rollouts.engine import Engine, PromptIds


class HeldOutRate(float):
    """A win rate that knows the outcome on each prompt, whose mean it is."""

    outcomes: tuple[float, ...]

    def __new__(cls, outcomes: Sequence[float]) -> Self:
        self = super().__new__(cls, sum(outcomes) / len(outcomes))
        self.outcomes = tuple(outcomes)
        return self


class Watch:
    """Calling it gives the share of ``prompts`` on which the policy now beats its start, ties counted half.

    It is made before training, when ``engine`` still samples the start; ``folder`` keeps the start's answers for a run
    that is restarted.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[PromptIds],
        raters: Sequence[Rater],
        *,
        longest: int,
        folder: Path,
        writes: bool = True,
    ) -> None:
        self.engine, self.prompts, self.raters = engine, prompts, raters
        self.sampling = Sampling(temperature=0.0, max_new_tokens=longest)
        path = folder / "start-answers.jsonl"
        if path.exists():
            self.start = read_records(path, Response)
        else:
            self.start = self._answers("start")
            if writes:  # several workers that share an engine come to the same answers, and one of them keeps them
                write_records(path, self.start)

    def __call__(self) -> HeldOutRate:
        now = self._answers("policy")
        return HeldOutRate(rubric_outcomes([prompt for prompt, _ids in self.prompts], now, self.start, self.raters))

    def _answers(self, model: str) -> list[Response]:
        groups = self.engine.generate(
            [ids for _prompt, ids in self.prompts], sampling=self.sampling, seeds=[0] * len(self.prompts)
        )
        return [
            Response(
                # The raters' noise hangs on the id: the same text is the same answer, whenever it is given.
                id=content_id(["watched", prompt.id, completion.text]),
                prompt_id=prompt.id,
                text=completion.text,
                model=model,
                sampling=self.sampling,
                seed=0,
                tokens=len(completion.tokens),
                finished=completion.finished,
            )
            for (prompt, _ids), (completion,) in zip(self.prompts, groups, strict=True)
        ]
