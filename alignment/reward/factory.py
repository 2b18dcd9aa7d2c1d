"""From a recipe's list of rewards to rewards that score."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, cast

from alignment.chat import knows_template, render_response
from alignment.errors import StageError
from alignment.models.reward_model import load_reward_model, score
from alignment.recipe.judges import folder_data
from alignment.recipe.rewards.components import RewardList
from alignment.recipe.rewards.judge import JudgeReward
from alignment.recipe.rewards.reward_models import EnsembleReward, ModelReward
from alignment.recipe.rewards.settings import reward_name
from alignment.recipe.rewards.user_function import FunctionReward, data_name
from alignment.reward import instructions, rules, verifiable
from alignment.reward.judge_reward import judge_reward
from alignment.reward.outside_model import outside_reward
from alignment.reward.protocol import Component, Reward, RewardInput, Rewards
from alignment.reward.user_function import function
from alignment.stage import StageContext

MAKERS: Mapping[str, Callable[[Any], Reward]] = {  # those that need nothing but their settings
    "number": verifiable.number,
    "exact": verifiable.exact,
    "choice": verifiable.choice,
    "regex": verifiable.regex,
    "json_schema": verifiable.json_schema,
    "code": verifiable.code,
    "instructions": instructions.instructions,
    "length": rules.length,
    "format": rules.form,
    "keywords": rules.keywords,
    "language": rules.language,
    "length_penalty": rules.length_penalty,
    "repetition_penalty": rules.repetition_penalty,
}


def build_rewards(settings: RewardList, context: StageContext, tokenizer: Any | None = None) -> Rewards:
    """The rewards of a stage. ``tokenizer`` is the policy's, where one is trained.

    Raises StageError where a reward model knows another chat template than the policy, or a function cannot be loaded.
    """
    return Rewards([Component(reward_name(one), one.weight, _build(one, context, tokenizer)) for one in settings])


def model_reward(settings: ModelReward, context: StageContext, tokenizer: Any | None) -> Reward:
    """The score of a trained reward model. ``tokenizer`` is the policy's, where one is trained.

    Raises StageError where the model knows another chat template than the policy; InputError where one from outside
    cannot be had.
    """
    if settings.model is None:
        folder = None if settings.folder is None else context.data[folder_data(settings.folder)]
        return outside_reward(settings, context.run, folder, context.kept or context.checkpoints / "answers")
    model, own_tokenizer = load_reward_model(context.inputs[settings.model], context.run)
    if tokenizer is not None:
        check_template(tokenizer, own_tokenizer, settings.model)
    return scoring(model, own_tokenizer, batch_size=settings.batch_size)


def ensemble(settings: EnsembleReward, context: StageContext, tokenizer: Any | None) -> Reward:
    """See :class:`EnsembleReward`. Raises StageError where a model knows another chat template than the policy."""
    models = []
    for name in settings.models:
        model, own_tokenizer = load_reward_model(context.inputs[name], context.run)
        if tokenizer is not None:
            check_template(tokenizer, own_tokenizer, name)
        models.append(scoring(model, own_tokenizer, batch_size=settings.batch_size))
    return lower_bound(models, settings.deviations)


def lower_bound(models: Sequence[Reward], deviations: float) -> Reward:
    """The mean of what ``models`` give an answer, less ``deviations`` of its sample standard deviation over them."""

    def scores(answers: Sequence[RewardInput]) -> list[float]:
        rows = zip(*(cast(Sequence[float], model(answers)) for model in models), strict=True)
        return [fmean(row) - deviations * stdev(row) for row in rows]

    return scores


def scoring(model: Any, tokenizer: Any, *, batch_size: int = 32) -> Reward:
    """The score of a reward model that is loaded.

    It reads an answer's text as it was rendered for its training, not the tokens that were drawn: these may spell the
    same text in another way, which raters and training never saw.
    """

    def scores(answers: Sequence[RewardInput]) -> list[float]:
        rows = [
            render_response(tokenizer, answer.prompt.messages, answer.text, finished=answer.finished)
            for answer in answers
        ]
        return score(model, tokenizer, rows, batch_size=batch_size)

    return scores


def check_template(policy: Any, reward: Any, name: str) -> None:
    """Raises StageError where a reward model's tokenizer shapes conversations in another way than the policy's."""
    if not knows_template(policy, reward):
        raise StageError(
            f"{name} was trained with another chat template than the policy answers with; "
            "train the reward model from the same base"
        )


def _build(settings: Any, context: StageContext, tokenizer: Any | None) -> Reward:
    if isinstance(settings, ModelReward):
        return model_reward(settings, context, tokenizer)
    if isinstance(settings, EnsembleReward):
        return ensemble(settings, context, tokenizer)
    if isinstance(settings, JudgeReward):
        return judge_reward(settings, context)
    if isinstance(settings, FunctionReward):
        return function(settings, context.data.get(data_name(settings)))
    return MAKERS[settings.kind](settings)
