"""Judges as a recipe names them, told apart by their ``kind``; and the stage that makes preferences of their verdicts.

    preferences:
      kind: judge
      responses: responses
      judge: {kind: label_probabilities, model: base, question: "Which answer is shorter and more direct?"}
      calibration: raters          # a stage whose votes the judge is measured against before it is used
      min_kappa: 0.3

Every pair is judged in both orders, whatever the kind. A key to an endpoint is named by its environment variable and
stands nowhere in a recipe, an artifact or a log.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from alignment.digests import digest_of
from alignment.recipe.base import BASE, Count, Fraction, Name, NotNegative, Positive, Product, Settings

Text = Annotated[str, Field(min_length=1)]
Form = Literal["pairwise", "score", "ranking", "rubric"]
QUESTION = "Which answer is more helpful, correct and to the point?"


class Example(Settings):
    """A pair that was judged before, shown to the judge (few-shot)."""

    prompt: Text
    a: Text
    b: Text
    verdict: Literal["A", "B", "tie"]
    reason: str = ""


class ScoreExample(Settings):
    """An answer that was scored before, shown to the judge (few-shot)."""

    prompt: Text
    answer: Text
    score: Annotated[int, Field(ge=1, le=10)]
    reason: str = ""


class JudgeCriterion(Settings):
    """One criterion of a judge's rubric; each is judged by itself, and the verdicts are combined by weight."""

    name: Name
    text: Text  # what a better answer does, in a sentence
    weight: Positive = 1.0


class Price(Settings):
    """Money for a million tokens, in whatever currency the budget is in."""

    prompt: NotNegative = 0.0
    answer: NotNegative = 0.0


class Budget(Settings):
    """What may be spent, on all of a stage's questions; what was paid for before, and is kept, costs nothing again."""

    tokens: Count | None = None  # of prompts and answers
    money: Positive | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.tokens is None and self.money is None:
            raise ValueError("a budget bounds tokens, money or both")
        return self


class Endpoint(Settings):
    """An OpenAI-compatible server: ``POST <url>/chat/completions``."""

    url: Annotated[str, Field(pattern=r"^https?://[^@\s]+$")]  # up to and with /v1; no password in it
    model: Text
    api_key_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{2,63}$")] | None = None  # the variable's name
    json_schema: bool = True  # ask the server to keep to the answer's schema (`response_format`)
    concurrency: Count = 8
    requests_per_minute: Positive | None = None
    timeout: Positive = 60.0  # seconds, for one attempt
    retries: Annotated[int, Field(ge=0, le=20)] = 4  # after the first attempt, of failures that pass by themselves
    max_wait: Positive = 120.0  # seconds, the longest between two attempts, whatever the server asks for
    price: Price = Price()
    budget: Budget | None = None
    when_spent: Literal["stop", "use"] = "stop"  # use: go on with the pairs that were judged until then

    @model_validator(mode="after")
    def _money_has_a_price(self) -> Self:
        if self.budget is not None and self.budget.money is not None and not (self.price.prompt or self.price.answer):
            raise ValueError("a budget in money needs a price")
        return self


class Writer(Settings):
    """A model that writes: one of a stage's, or one behind an OpenAI-compatible endpoint."""

    model: Name | None = None  # a stage that makes a model, or base
    endpoint: Endpoint | None = None
    max_tokens: Count = 256  # of one answer
    temperature: NotNegative = 0.7

    @model_validator(mode="after")
    def _someone_writes(self) -> Self:
        if (self.model is None) == (self.endpoint is None):
            raise ValueError("name one of model and endpoint: who writes")
        return self


class LabelProbabilitiesJudge(Settings):
    """Reads the verdict from the logits of the answer's first token: a local model that need not be able to write one.

    ``form: pairwise`` compares the logits of A and B; ``score`` asks for 1 to 5 and takes the mean under the model's
    probabilities (Liu et al. 2023, G-Eval; Lee et al. 2023, direct RLAIF).
    """

    kind: Literal["label_probabilities"]
    model: Name = BASE  # a stage that makes a model, or base
    folder: str | None = None  # a model's folder instead, such as a registered version's; relative to the recipe
    form: Literal["pairwise", "score"] = "pairwise"
    question: Text = QUESTION
    examples: tuple[Example, ...] = ()
    score_examples: tuple[ScoreExample, ...] = ()
    batch_size: Count = 16  # pairs
    max_answer_tokens: Count = 512  # of each answer; the rest is left out, and said to be
    min_label_mass: Fraction = 0.05  # a verdict to which the model gives less of its probability is no verdict

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _check_model(self.model, self.folder)
        _check_examples(self.form, self.examples, self.score_examples)
        return self


class RewardModelJudge(Settings):
    """The sigmoid of the difference of two scores of a trained reward model (Bradley–Terry)."""

    kind: Literal["reward_model"]
    model: Name  # a stage of kind reward
    batch_size: Count = 32


class PairClassifierJudge(Settings):
    """A discriminative judge: a classifier that reads prompt and both answers together, trained on preferences."""

    kind: Literal["pair_classifier"]
    model: Name  # a stage of kind pair_classifier
    batch_size: Count = 32


class GenerativeJudge(Settings):
    """Writes its verdict as JSON: a model behind an endpoint, or a local one. What cannot be parsed is never guessed.

    ``ranking`` ranks all answers to a prompt that are asked about at once; ``rubric`` judges each criterion by itself.
    """

    kind: Literal["generative"]
    endpoint: Endpoint | None = None
    model: Name | None = None  # a stage that makes a model, or base
    folder: str | None = None  # a model's folder instead; relative to the recipe
    form: Form = "pairwise"
    question: Text = QUESTION
    criteria: tuple[JudgeCriterion, ...] = ()  # of form rubric
    reasoning: bool = False  # True: chain of thought, a reason before the verdict (a rubric's criteria always give one)
    examples: tuple[Example, ...] = ()
    score_examples: tuple[ScoreExample, ...] = ()
    max_tokens: Count = 256  # of one answer of the judge's
    temperature: NotNegative = 0.0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if sum(one is not None for one in (self.endpoint, self.model, self.folder)) != 1:
            raise ValueError("name one of endpoint, model and folder: who judges")
        if (self.form == "rubric") != bool(self.criteria):
            raise ValueError("form rubric has criteria, and no other form has")
        if len({criterion.name for criterion in self.criteria}) < len(self.criteria):
            raise ValueError("two criteria have the same name")
        _check_examples(self.form, self.examples, self.score_examples)
        return self


AnyJudge = LabelProbabilitiesJudge | RewardModelJudge | PairClassifierJudge | GenerativeJudge

JudgeSettings = Annotated[AnyJudge, Field(discriminator="kind")]
JUDGE_READS: dict[str, Product] = {  # by the role of what a judge is made of
    "judge": "policy",
    "judge_reward": "reward_model",
    "judge_classifier": "pair_classifier",
    "calibrated_by": "calibration",
}


def judge_models(judge: AnyJudge) -> tuple[str, ...]:
    """The stages whose models a judge is made of."""
    if isinstance(judge, RewardModelJudge | PairClassifierJudge):
        return (judge.model,)
    return (judge.model,) if judge.model is not None and judge.folder is None else ()


def judge_role(judge: AnyJudge) -> str:
    """The part that a judge's models play for the stage that asks it."""
    roles: dict[type[AnyJudge], str] = {RewardModelJudge: "judge_reward", PairClassifierJudge: "judge_classifier"}
    return roles.get(type(judge), "judge")


def scores_alone(judge: AnyJudge) -> bool:
    """Whether a judge looks at one answer at a time, so that there are no orders to disagree."""
    return isinstance(judge, RewardModelJudge) or getattr(judge, "form", "pairwise") == "score"


def pays(judge: AnyJudge) -> bool:
    """Whether a judge is behind an endpoint, whose answers are kept by themselves and must be counted."""
    return isinstance(judge, GenerativeJudge) and judge.endpoint is not None


def judge_folder(judge: AnyJudge) -> str | None:
    """The folder of a judge's model, where the recipe names one."""
    folder: str | None = getattr(judge, "folder", None)
    return folder


def folder_data(folder: str) -> str:
    """Under which name a recipe's files hold a judge's folder."""
    return f"folder:{folder}"


def judge_digest(judge: AnyJudge) -> str:
    """What tells two judges apart: all their settings but how an endpoint is reached and paid for."""
    away = {"concurrency", "requests_per_minute", "timeout", "retries", "max_wait", "budget", "when_spent", "price",
            "api_key_env"}  # fmt: skip
    exclude: Any = {"batch_size": True, "endpoint": away}
    return digest_of(judge.model_dump(mode="json", exclude=exclude))


def _check_model(model: str, folder: str | None) -> None:
    if folder is not None and model != BASE:
        raise ValueError("give a model or a folder, not both")


def _check_examples(form: str, examples: tuple[Example, ...], scored: tuple[ScoreExample, ...]) -> None:
    if examples and form not in ("pairwise", "ranking"):
        raise ValueError(f"examples are pairs, and the form {form} judges none; see score_examples")
    if scored and form != "score":
        raise ValueError(f"score_examples are of form score, not {form}")


def check_calibration(judge: object, calibrated_by: str | None) -> None:
    """Raises ValueError where a calibration is named without the judge that it is of."""
    if judge is None and calibrated_by is not None:
        raise ValueError("calibrated_by is the calibration of a judge: give the judge too")
