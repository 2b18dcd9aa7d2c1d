"""What variants are compared by: one figure of the evaluation that each prompt has a value of."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from alignment.data.jsonl import read_records
from alignment.errors import Fault, InputError, StageError, suggestion
from alignment.evaluation.bootstrap import Floats
from alignment.evaluation.metric_names import evaluation_judges
from alignment.metrics.results import EvaluatedPrompt
from alignment.recipe.base import BASE, CHAMPION
from alignment.recipe.judges import judge_models
from alignment.recipe.rewards.components import reward_stages
from alignment.recipe.rewards.judge import JudgeReward
from alignment.recipe.rewards.settings import reward_name
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.records import Artifact, Record

SCREENED = 128  # prompts of the training split that are asked at most


class ComparedFigure(Record):
    """A win rate against ``opponent`` by ``judge``, or the score of the reward function ``reward``; higher is better.

    ``judged_by`` are the stages whose models judge.
    """

    opponent: str = ""
    judge: str = ""
    reward: str = ""

    @property
    def name(self) -> str:
        """As ``--by`` takes it: ``win_rate.base.rubric``, ``reward.<name>``."""
        return f"reward.{self.reward}" if self.reward else f"win_rate.{self.opponent}.{self.judge}"

    @property
    def words(self) -> str:
        """What the figure is, in words."""
        if self.reward:
            return f"the reward {self.reward}"
        who = {"rubric": "simulated raters", "reward": "the reward model", "judge": "the judge"}[self.judge]
        return f"prompts won against {self.opponent} by {who} (ties half)"

    @property
    def is_share(self) -> bool:
        """Whether it lies between 0 and 1."""
        return not self.reward

    def value(self, row: EvaluatedPrompt, candidate: str) -> float:
        """Its value on one prompt."""
        return row.scores[candidate][self.reward] if self.reward else row.outcomes[self.opponent][self.judge]


def objectives(evaluation: EvaluateStage, varied: Collection[str]) -> Iterator[ComparedFigure]:
    """What the variants of a sweep can be compared by, the most telling first.

    ``varied`` are the stages that are not the same in all variants: what they make can be no common opponent and no
    common judge. Nor can the champion, who may be another one when the next variant is asked.
    """
    opponents = sorted(
        {*evaluation.against} - {CHAMPION}, key=lambda name: (name != BASE, evaluation.against.index(name))
    )
    for opponent in opponents:
        for judge in evaluation_judges(evaluation):
            if not {opponent, *_judged_by(evaluation, judge)} & set(varied):
                yield ComparedFigure(opponent=opponent, judge=judge)
    for reward in evaluation.rewards:
        models = judge_models(reward.judge) if isinstance(reward, JudgeReward) else reward_stages(reward)
        if not set(models) & set(varied):
            yield ComparedFigure(reward=reward_name(reward))


def _judged_by(evaluation: EvaluateStage, judge: str) -> tuple[str, ...]:
    """The stages whose models a judge of an evaluation is."""
    if judge == "reward":
        return (evaluation.reward,) if evaluation.reward else ()
    return judge_models(evaluation.judge) if judge == "judge" and evaluation.judge is not None else ()


def choose(name: str, evaluation: EvaluateStage, varied: Collection[str], wanted: str | None) -> ComparedFigure:
    """The figure that a sweep compares by: the one that is ``wanted``, else the most telling.

    Raises InputError where the evaluation ``name`` has none that is the same figure for all variants.
    """
    known = {one.name: one for one in objectives(evaluation, varied)}
    if wanted is not None and wanted not in known:
        raise InputError([Fault(f"{name} gives no {wanted} that all variants have in common",
                                suggestion(wanted, known), "--by")])  # fmt: skip
    if not known:
        problem = "it gives no figure of each prompt that all variants have in common"
        remedy = "give it raters, a judge or rewards, and an opponent that no variant changes, such as base"
        raise InputError([Fault(problem, remedy, field=f"stages.{name}")])
    return known[wanted] if wanted is not None else next(iter(known.values()))


def screening(evaluation: EvaluateStage, objective: ComparedFigure) -> EvaluateStage:
    """The evaluation of the same figure, and as little else as there can be, on prompts of the training split."""
    judge = objective.judge
    kept = tuple(one for one in evaluation.rewards if reward_name(one) == objective.reward)
    return evaluation.model_copy(
        update={
            "split": "train", "prompts": None, "part": "all", "limit": min(evaluation.limit or SCREENED, SCREENED),
            "against": (objective.opponent,) if objective.opponent else evaluation.against[:1],
            "raters": evaluation.raters if judge == "rubric" else None,
            "judge": evaluation.judge if judge == "judge" else None,
            "calibrated_by": evaluation.calibrated_by if judge == "judge" else None,
            "reward": evaluation.reward if judge == "reward" else None,
            "rewards": kept, "metrics": (), "kl_prompts": 1,
        }
    )  # fmt: skip


def values_of(evaluations: Sequence[Artifact], objective: ComparedFigure, candidate: str) -> tuple[list[str], Floats]:
    """The prompts' ids, and the figure's values on them (prompts, seeds), of one variant's evaluations by seed.

    Raises StageError where they did not ask the same prompts.
    """
    columns, asked = list[list[float]](), list[list[str]]()
    for artifact in evaluations:
        rows = sorted(
            read_records(Path(artifact.path) / "samples.jsonl", EvaluatedPrompt), key=lambda row: row.prompt_id
        )
        asked.append([row.prompt_id for row in rows])
        columns.append([objective.value(row, candidate) for row in rows])
    if any(ids != asked[0] for ids in asked):
        raise StageError("the evaluations of one variant asked different prompts: they cannot be compared")
    return asked[0], np.array(columns, dtype=np.float64).T
