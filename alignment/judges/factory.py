"""From a recipe's judge or writer to one that judges or writes: models loaded, answers that were paid for found."""

from pathlib import Path
from typing import Any

from alignment.durable_files import folder_digest
from alignment.errors import StageError
from alignment.judges.answer_cache import Answers
from alignment.judges.llm_judge import Asker, WritingJudge
from alignment.judges.local_model import LocalAsker
from alignment.judges.logprob_judge import LabelJudge
from alignment.judges.openai_endpoint import EndpointAsker
from alignment.judges.protocol import Judge
from alignment.judges.report import JudgeReport
from alignment.judges.reward_model_judge import RewardJudge
from alignment.models.load import load_policy
from alignment.models.reward_model import load_reward_model
from alignment.recipe.base import BASE
from alignment.recipe.judges import (
    AnyJudge,
    LabelProbabilitiesJudge,
    PairClassifierJudge,
    RewardModelJudge,
    Writer,
    judge_digest,
)
from alignment.records import Artifact
from alignment.stage import StageContext


def build_judge(settings: AnyJudge, context: StageContext, place: str = "judge") -> Judge:
    """The judge of a stage; ``place`` is what :func:`alignment.recipe.graph.judges_of` calls it.

    Raises StageError where its model is an adapter for another base, or an endpoint's key is not to be had.
    """
    if isinstance(settings, RewardModelJudge):
        return RewardJudge(settings, *load_reward_model(context.inputs[settings.model], context.run))
    if isinstance(settings, PairClassifierJudge):
        from alignment.judges.pair_classifier import ClassifierJudge  # brings TRL along

        trained = context.inputs[settings.model]
        return ClassifierJudge(settings, Path(trained.path), *load_reward_model(trained, context.run))
    if isinstance(settings, LabelProbabilitiesJudge):
        model, tokenizer, name = _model(settings.model, settings.folder, context, place)
        return LabelJudge(settings, model, tokenizer, f"label probabilities of {name}")
    if settings.endpoint is not None:
        asker = EndpointAsker(settings, settings.endpoint, Answers(context.kept or context.checkpoints / "answers"))
        return WritingJudge(settings, asker, f"{settings.endpoint.model} ({settings.form})")
    model, tokenizer, name = _model(settings.model or BASE, settings.folder, context, place)
    return WritingJudge(settings, LocalAsker(settings, model, tokenizer, context.run.seed), f"{name} ({settings.form})")


def build_writer(settings: Writer, context: StageContext) -> tuple[Asker, str]:
    """Who writes, and its name.

    Raises StageError where its model is an adapter for another base, or an endpoint's key is not to be had.
    """
    if settings.endpoint is not None:
        answers = Answers(context.kept or context.checkpoints / "answers")
        return EndpointAsker(settings, settings.endpoint, answers), settings.endpoint.model
    artifact = context.inputs[settings.model or BASE]
    model, tokenizer = load_policy(artifact, context.inputs[BASE], context.run)
    return LocalAsker(settings, model, tokenizer, context.run.seed), str(artifact.ref())


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
    model, tokenizer = load_policy(artifact, base, context.run)
    return model, tokenizer, stage if folder is None else Path(folder).name


def _as_artifact(folder: str, path: Path) -> Artifact:
    """A folder as what a stage made: whole weights, or an adapter on the recipe's base."""
    return Artifact(
        name=f"folder {folder}", kind="model", version=1, digest=folder_digest(path), path=str(path), key=folder
    )
