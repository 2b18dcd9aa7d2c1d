"""Rewards as a recipe names them: a list, each told apart by its ``kind``, with a weight and a metric of its own.

    rewards:
      - {kind: number}
      - {kind: length, unit: words, at_most: 40, weight: 0.5}

What trains on them sees the weighted sum; what reports sees each. Rewards lie in [0, 1] and penalties in [-1, 0],
except those of a reward model and of a user's function. ``number``, ``exact``, ``choice``, ``code`` and
``instructions`` compare with a prompt's ``reference``, which every prompt must then have.
"""

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from alignment.recipe.base import Count, Fraction, Name, NotNegative, Positive, Product, Settings
from alignment.recipe.judges import (
    JUDGE_READS,
    GenerativeJudge,
    LabelProbabilitiesJudge,
    ModelServer,
    folder_data,
    scores_alone,
)

Unit = Literal["words", "sentences", "lines", "characters", "tokens"]
Form = Literal[
    "bullets", "numbered", "json", "one_paragraph", "one_line", "lowercase", "uppercase", "capitalised", "no_comma",
    "quoted", "ends_with_full_stop", "ends_with_question_mark", "no_markdown",
]  # fmt: skip
Script = Literal[
    "latin", "cyrillic", "greek", "arabic", "hebrew", "devanagari", "cjk", "hiragana", "katakana", "hangul"
]


class RewardSettings(Settings):
    """What all rewards have: a weight in the sum, and a name for their metric (None: the kind)."""

    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Weight in the sum of the rewards."""
    name: Name | None = None
    """Name of the reward's metric. null: the kind."""


class ModelReward(RewardSettings):
    """The score of a reward model: a stage's, which knows the policy's chat template or is an encoder, or another that
    reads conversations by its own template and tokenizer: of a folder, a hub, or behind a server."""

    kind: Literal["model"]
    """The score of a reward model."""
    model: Name | None = None
    """A stage of kind `reward`. One of `model`, `folder`, `hub` and `endpoint` is required."""
    folder: str | None = None
    """A reward model's folder (sequence classification with one output and a chat template), relative to the recipe."""
    hub: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")] | None = None
    """The name of such a model on a hub."""
    revision: str | None = None
    """Revision of the hub's model. Pin it: else the model can change under the recipe."""
    endpoint: ModelServer | None = None
    """A server of such a model, in vLLM's protocol: `POST <url>/pooling` with the conversation's `messages` gives
    `{"data": [{"data": [score]}]}`."""
    batch_size: Count = 32
    """Answers in one forward pass."""

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if sum(one is not None for one in (self.model, self.folder, self.hub, self.endpoint)) != 1:
            raise ValueError("name one of model, folder, hub and endpoint: which reward model")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision is of a hub's model: name one with hub, or remove it")
        return self

    def held_here(self) -> bool:
        """Whether its weights are held where the stage runs."""
        return self.endpoint is None


class EnsembleReward(RewardSettings):
    """The lower bound of several reward models' scores: their mean less ``deviations`` of their standard deviations.

    Where the models disagree they have seen too little, and a policy that is rewarded there learns their mistakes
    (Coste et al. 2023). They have to differ: give the stages that train them a ``seed`` each.
    """

    kind: Literal["ensemble"]
    """The lower bound of several reward models' scores."""
    models: Annotated[tuple[Name, ...], Field(min_length=2)]
    """Stages of kind `reward`, which know the policy's chat template or are encoders."""
    deviations: NotNegative = 1.0
    """How many standard deviations k of the models' scores (the sample's, divided by n - 1) are taken off their mean.
    0: the mean."""
    batch_size: Count = 32
    """Answers in one forward pass."""

    @field_validator("models")
    @classmethod
    def _each_once(cls, models: tuple[Name, ...]) -> tuple[Name, ...]:
        for name in models:
            if models.count(name) > 1:
                raise ValueError(f"{name} stands twice; an ensemble is of different models")
        return models


class NumberReward(RewardSettings):
    """1 where the answer's result equals the reference as mathematics (``math-verify``): 1/2, 0.5 and \\frac12.

    Where the reference is a number, so must the result be: a sum that is still to be done, or a fraction that can be
    reduced, may be the question itself.
    """

    kind: Literal["number"]
    """Equality with the reference as mathematics."""
    decimals: Annotated[int, Field(ge=0, le=15)] = 6
    """Decimal places to which numbers are rounded before they are compared."""


class ExactReward(RewardSettings):
    """1 where the answer is the reference, apart from white space; by default from case and end punctuation too."""

    kind: Literal["exact"]
    """Equality with the reference as text."""
    strict: bool = False
    """Case and punctuation count as well."""


class ChoiceReward(RewardSettings):
    """1 where the letter chosen is the reference's: ``B``, ``(b)``, ``Answer: B``; the last one that is named."""

    kind: Literal["choice"]
    """Equality of the chosen letter with the reference."""
    letters: Annotated[str, Field(pattern=r"^[A-Z]{2,26}$")] = "ABCD"
    """The letters to choose from."""


class RegexReward(RewardSettings):
    """1 where a regular expression matches the answer; ``{reference}`` in it stands for the reference's text."""

    kind: Literal["regex"]
    """A match of a regular expression."""
    pattern: Annotated[str, Field(min_length=1)]
    """The expression in Python's syntax; `{reference}` stands for the reference's text, escaped."""
    whole: bool = False
    """It must match from the first character of the answer to the last."""
    ignore_case: bool = False
    """Match without regard to case."""
    seconds: Positive = 2.0
    """Time limit for one answer in seconds, after which it gets 0: a pattern may backtrack for ever."""

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        try:
            re.compile(self.pattern.replace("{reference}", "x"))
        except re.error as error:
            raise ValueError(f"the pattern is no regular expression: {error}") from None
        return self


class JsonReward(RewardSettings):
    """1 where the answer (or its last fenced block) is JSON that a JSON Schema (2020-12) allows."""

    kind: Literal["json_schema"]
    """Validity under a JSON Schema."""
    definition: dict[str, Any] = Field(default_factory=dict)
    """The schema (JSON Schema 2020-12). Empty: any JSON is valid."""
    seconds: Positive = 2.0
    """Time limit for one answer in seconds, after which it gets 0."""

    @model_validator(mode="after")
    def _is_a_schema(self) -> Self:
        from jsonschema import Draft202012Validator, SchemaError

        try:
            Draft202012Validator.check_schema(self.definition)
        except SchemaError as error:
            raise ValueError(f"the definition is no JSON Schema: {error.message}") from None
        return self


class CodeReward(RewardSettings):
    """1 where the answer's Python passes the reference's, run after it: ``assert double(2) == 4``.

    See :mod:`alignment.reward.sandbox` for what the process may do.
    """

    kind: Literal["code"]
    """Passing the reference's tests."""
    seconds: Positive = 5.0
    """Wall-clock seconds for one answer."""
    memory_mb: Annotated[int, Field(ge=64)] = 512
    """Memory of one answer's process in MB."""
    processes: Count | None = None
    """Processes that run tests at a time. null: one for each core."""


class LengthReward(RewardSettings):
    """1 where the answer's length lies within the bounds."""

    kind: Literal["length"]
    """A length within bounds."""
    unit: Unit = "words"
    """What is counted."""
    at_least: Annotated[int, Field(ge=0)] = 0
    """Least length, in units."""
    at_most: Annotated[int, Field(ge=0)] | None = None
    """Greatest length, in units. null: no upper bound."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"no length is at least {self.at_least} and at most {self.at_most}")
        return self


class FormatReward(RewardSettings):
    """The share of the forms that the answer has."""

    kind: Literal["format"]
    """The share of required forms."""
    forms: tuple[Form, ...] = Field(min_length=1)
    """The forms that an answer must have."""


class KeywordsReward(RewardSettings):
    """The share of the conditions that hold: each required word stands in the answer, each forbidden one does not."""

    kind: Literal["keywords"]
    """The share of keyword conditions that hold."""
    required: tuple[str, ...] = ()
    """Words that must stand in the answer."""
    forbidden: tuple[str, ...] = ()
    """Words that must not."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not all(word.strip() for word in (*self.required, *self.forbidden)):
            raise ValueError("a keyword is empty")
        if not self.required and not self.forbidden:
            raise ValueError("give required or forbidden words")
        return self


class LanguageReward(RewardSettings):
    """The share of the answer's letters that are of one script: a check of the language as far as letters tell it."""

    kind: Literal["language"]
    """The share of letters of a script."""
    script: Script
    """The script that the letters should be of."""


class InstructionsReward(RewardSettings):
    """Whether the answer follows its prompt's verifiable instructions (IFEval; Zhou et al. 2023).

    A prompt's row holds them as IFEval's do: ``instruction_id_list``, and ``kwargs``, a mapping for each.
    """

    kind: Literal["instructions"]
    """IFEval's verifiable instructions."""
    counts: Literal["all", "share"] = "all"
    """`all`: 1 where every instruction of the prompt is followed, so that the mean is IFEval's accuracy over prompts.
    `share`: the share that is followed, which teaches more of a prompt that is half right."""
    loose: bool = False
    """An instruction is followed also where it is without the answer's first line, its last line, or its asterisks."""


class LengthPenalty(RewardSettings):
    """0 up to ``free``, then falling in a line to -1 at ``full`` (soft overlong punishment, Yu et al. 2025, eq. 13)."""

    kind: Literal["length_penalty"]
    """A penalty on long answers."""
    unit: Unit = "words"
    """What is counted."""
    free: Annotated[int, Field(ge=0)]
    """Length up to which the penalty is 0, in units."""
    full: Count
    """Length at which the penalty reaches -1, in units."""

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.full <= self.free:
            raise ValueError(f"full={self.full} is not more than free={self.free}")
        return self


class RepetitionPenalty(RewardSettings):
    """Minus the share of the answer's word n-grams that stood in it before (Welleck et al. 2020, seq-rep-n)."""

    kind: Literal["repetition_penalty"]
    """A penalty on repeated n-grams."""
    ngram: Count = 3
    """Words in an n-gram."""


class FunctionReward(RewardSettings):
    """A function of the user's: ``rewards.py:polite`` (a file beside the recipe) or ``package.module:polite``.

    It runs in a process of its own, and is called as ``polite(prompts, responses, references, **options)`` with lists
    of messages, texts, and texts or None; it returns one number for each. It may be ``async``. Where it takes
    ``finished`` by name (or any keyword), that is a list of booleans: False for an answer that was cut off at its
    longest length.
    """

    kind: Literal["function"]
    """A function of the user's."""
    function: Annotated[str, Field(pattern=r"^[^:]+:[A-Za-z_]\w*$")]
    """`file.py:name`, relative to the recipe, or `package.module:name`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the function."""
    seconds: Positive = 600.0
    """Time limit for one call in seconds, after which the stage ends."""

    @field_validator("options")
    @classmethod
    def _not_told_otherwise(cls, options: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted({"prompts", "responses", "references", "finished"} & set(options)):
            raise ValueError(f"{taken[0]} is what the stage tells the function itself; give the option another name")
        return options


class JudgeReward(RewardSettings):
    """What a judge says of an answer while the policy trains (direct RLAIF, Lee et al. 2023).

    A judge of form ``score`` scores each answer by itself, in [0, 1]. Any other compares it with ``opponents`` other
    answers to its prompt, in both orders: the reward is the mean probability that it is the better one, disagreement
    counting half. An answer without any verdict gets its batch's mean, which teaches nothing.
    """

    kind: Literal["judge"]
    """The opinion of a judge."""
    judge: Annotated[LabelProbabilitiesJudge | GenerativeJudge, Field(discriminator="kind")]
    """The judge: `label_probabilities` or `generative`."""
    calibrated_by: Name | None = None
    """A stage of kind `judge` with the very same judge. null: the reward is called uncalibrated."""
    opponents: Count = 2
    """Other answers to the prompt that each answer is compared with, for judges that compare."""
    max_unread: Fraction = 0.5
    """Share of a batch without a verdict above which the run ends."""

    @property
    def alone(self) -> bool:
        """Whether each answer is judged by itself."""
        return scores_alone(self.judge)


RewardComponent = Annotated[
    ModelReward | NumberReward | ExactReward | ChoiceReward | RegexReward | JsonReward | CodeReward | LengthReward
    | FormatReward | KeywordsReward | LanguageReward | LengthPenalty | RepetitionPenalty | FunctionReward | JudgeReward
    | EnsembleReward | InstructionsReward,
    Field(discriminator="kind"),
]  # fmt: skip
RewardList = tuple[RewardComponent, ...]


def reward_stages(reward: RewardSettings) -> tuple[str, ...]:
    """The stages whose reward models a reward asks."""
    if isinstance(reward, EnsembleReward):
        return reward.models
    return (reward.model,) if isinstance(reward, ModelReward) and reward.model is not None else ()


def reward_folders(rewards: RewardList) -> dict[str, str]:
    """The folders of reward models that a recipe names, by the name that they go under as the stage's data."""
    return {
        folder_data(reward.folder): reward.folder
        for reward in rewards
        if isinstance(reward, ModelReward) and reward.folder is not None
    }


REWARD_READS: dict[str, Product] = {"rewards": "reward_model", **JUDGE_READS}  # by the role of what rewards are made of
WITH_REFERENCE = (NumberReward, ExactReward, ChoiceReward, CodeReward, InstructionsReward)


def reward_name(reward: RewardSettings) -> str:
    """What a reward's metric is called."""
    return reward.name or str(reward.kind)  # type: ignore[attr-defined]  # every member of the union has one


def needs_reference(reward: RewardSettings) -> bool:
    """Whether a reward compares with the prompt's reference."""
    return isinstance(reward, WITH_REFERENCE) or (isinstance(reward, RegexReward) and "{reference}" in reward.pattern)


def unique_names(rewards: RewardList) -> RewardList:
    """``rewards``, where no two share a name. Raises ValueError: their metrics could not be told apart."""
    names = [reward_name(reward) for reward in rewards]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two rewards are called {name}; give one of them a name")
    return rewards


def is_file(named: str) -> bool:
    """Whether the module of ``module:name`` is named by its file (else by the name that Python imports it under)."""
    return module_of(named).endswith(".py")


def module_of(named: str) -> str:
    """The module of a user's function or class, which is named as ``file.py:name`` or ``package.module:name``."""
    return named.rpartition(":")[0]


def attribute_of(named: str) -> str:
    """The name of a user's function or class within its module."""
    return named.rpartition(":")[2]


def data_name(settings: FunctionReward) -> str:
    """Under which name a stage is given the function's file; it changes with whatever makes another function of it."""
    return f"{reward_name(settings)}:{attribute_of(settings.function)}"


def module_file(named: str) -> Path | None:
    """The source of a module that is named by import; None where it cannot be found."""
    try:
        spec = importlib.util.find_spec(module_of(named))
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None and spec.has_location else None
