"""From a recipe's judge to one that judges: models loaded, answers that were paid for found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment.chat import render_answer, render_prompt
from alignment.faults import StageError
from alignment.models.loading import load_policy, load_reward_model, stop_ids
from alignment.preferences.judges.answers import Answers
from alignment.preferences.judges.endpoint import EndpointAsker
from alignment.preferences.judges.generative import Reply, Wording, WritingJudge
from alignment.preferences.judges.injection import gives_orders
from alignment.preferences.judges.labels import LabelJudge
from alignment.preferences.judges.protocol import Judge, Judgement, Tally, bounded
from alignment.preferences.judges.report import JudgeReport
from alignment.preferences.judges.settings import (
    AnyJudge,
    LabelProbabilitiesJudge,
    PairClassifierJudge,
    RewardModelJudge,
    judge_digest,
)
from alignment.preferences.judges.templates import Question
from alignment.recipe import BASE
from alignment.records import Artifact, Comparison, Sampling
from alignment.rollouts.transformers_engine import TransformersEngine
from alignment.stage import StageContext
from alignment.workspace import folder_digest


def build_judge(settings: AnyJudge, context: StageContext, place: str = "judge") -> Judge:
    """The judge of a stage; ``place`` is what :func:`judges_of` calls it.

    Raises StageError where its model is an adapter for another base, or an endpoint's key is not to be had.
    """
    if isinstance(settings, RewardModelJudge):
        return RewardJudge(settings, *load_reward_model(context.inputs[settings.model], context.recipe))
    if isinstance(settings, PairClassifierJudge):
        from alignment.preferences.judges.classifier import ClassifierJudge  # brings TRL along

        trained = context.inputs[settings.model]
        return ClassifierJudge(settings, Path(trained.path), *load_reward_model(trained, context.recipe))
    if isinstance(settings, LabelProbabilitiesJudge):
        model, tokenizer, name = _model(settings.model, settings.folder, context, place)
        return LabelJudge(settings, model, tokenizer, f"label probabilities of {name}")
    if settings.endpoint is not None:
        asker = EndpointAsker(settings, settings.endpoint, Answers(context.kept or context.checkpoints / "answers"))
        return WritingJudge(settings, asker, f"{settings.endpoint.model} ({settings.form})")
    model, tokenizer, name = _model(settings.model or BASE, settings.folder, context, place)
    return WritingJudge(
        settings, LocalAsker(settings, model, tokenizer, context.recipe.seed), f"{name} ({settings.form})"
    )


def calibration_of(calibrated_by: str | None, judge: AnyJudge, context: StageContext) -> JudgeReport | None:
    """What the stage ``calibrated_by`` measured of this very judge; None without one.

    Raises StageError where it measured another.
    """
    if calibrated_by is None:
        return None
    path = Path(context.inputs[calibrated_by].path) / "judge.json"
    report = JudgeReport.model_validate_json(path.read_text("utf-8"))
    if report.digest != judge_digest(judge):
        raise StageError(f"{calibrated_by} calibrated another judge than {context.name}'s: make their settings equal")
    return report


def _model(stage: str, folder: str | None, context: StageContext, place: str) -> tuple[Any, Any, str]:
    """A judge's model, its tokenizer and its name."""
    base = context.inputs[BASE]
    artifact = context.inputs[stage] if folder is None else _as_artifact(folder, context.data[place])
    # In evaluation mode, without a gradient: a judge is never trained here.
    model, tokenizer = load_policy(artifact, base, context.recipe)
    return model, tokenizer, stage if folder is None else Path(folder).name


def _as_artifact(folder: str, path: Path) -> Artifact:
    """A folder as what a stage made: whole weights, or an adapter on the recipe's base."""
    return Artifact(
        name=f"folder {folder}", kind="model", version=1, digest=folder_digest(path), path=str(path), key=folder
    )


class RewardJudge:
    """See :class:`~alignment.preferences.judges.settings.RewardModelJudge`."""

    def __init__(self, settings: RewardModelJudge, model: Any, tokenizer: Any) -> None:
        self.settings, self.model, self.tokenizer = settings, model, tokenizer
        self.name = f"reward model {settings.model}"
        self.tally = Tally()

    async def judge(self, comparisons: Sequence[Comparison], /) -> list[Judgement]:
        from alignment.reward.model import score  # brings TRL along

        shown = [one for one in comparisons if not any(gives_orders(response.text) for response in one.responses)]
        wanted = {(one.prompt.id, response.text): one.prompt.messages for one in shown for response in one.responses}
        rows = [
            render_prompt(self.tokenizer, messages) + render_answer(self.tokenizer, messages, text)
            for (_id, text), messages in wanted.items()
        ]
        self.tally.asked += len(rows)
        self.tally.prompt_tokens += sum(map(len, rows))
        scores = dict(
            zip(wanted, score(self.model, self.tokenizer, rows, batch_size=self.settings.batch_size), strict=True)
        )
        leads = {
            one.id: bounded(scores[one.prompt.id, one.responses[0].text] - scores[one.prompt.id, one.responses[1].text])
            for one in shown
        }
        return [
            Judgement(comparison_id=one.id, left_first=leads[one.id], left_last=leads[one.id])
            if one.id in leads
            else Judgement(comparison_id=one.id, note="suspect")
            for one in comparisons
        ]


class LocalAsker:
    """A model of this process that writes.

    Each call stands for itself: what it was asked before would change who shares a batch, and with it the last bits.
    """

    def __init__(self, settings: Wording, model: Any, tokenizer: Any, seed: int) -> None:
        self.settings, self.tokenizer, self.seed = settings, tokenizer, seed
        self.engine = TransformersEngine(model, tokenizer, stop_ids=stop_ids(model, tokenizer))
        self.tally = Tally()

    async def ask(self, questions: Sequence[Question], /) -> list[Reply]:
        rows = [tuple(render_prompt(self.tokenizer, question.messages)) for question in questions]
        fresh = list(dict.fromkeys(rows))
        replies: dict[tuple[int, ...], Reply] = {}
        sampling = Sampling(temperature=self.settings.temperature, max_new_tokens=self.settings.max_tokens)
        drawn = self.engine.generate(fresh, sampling=sampling, seeds=[self.seed] * len(fresh)) if fresh else []
        for row, (completion,) in zip(fresh, drawn, strict=True):
            replies[row] = Reply(completion.text, finished=completion.finished)
            self.tally.answer_tokens += len(completion.tokens)
        self.tally.asked += len(fresh)
        self.tally.prompt_tokens += sum(map(len, fresh))
        return [replies[row] for row in rows]
