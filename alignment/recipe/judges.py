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
from alignment.recipe.base import BASE, Choice, Count, Fraction, Name, NotNegative, Positive, Product, Settings

Text = Annotated[str, Field(min_length=1)]
Form = Literal["pairwise", "score", "ranking", "rubric"]
QUESTION = "Which answer is more helpful, correct and to the point?"


class Example(Settings):
    """A pair that was judged before, shown to the judge (few-shot)."""

    prompt: Text
    """The prompt."""
    a: Text
    """The answer shown first."""
    b: Text
    """The answer shown second."""
    verdict: Literal["A", "B", "tie"]
    """The better answer, or a tie."""
    reason: str = ""
    """Why, shown before the verdict where the judge reasons."""


class ScoreExample(Settings):
    """An answer that was scored before, shown to the judge (few-shot)."""

    prompt: Text
    """The prompt."""
    answer: Text
    """The answer that was scored."""
    score: Annotated[int, Field(ge=1, le=10)]
    """Its score; more is better."""
    reason: str = ""
    """Why, shown before the score where the judge reasons."""


class JudgeCriterion(Settings):
    """One criterion of a judge's rubric; each is judged by itself, and the verdicts are combined by weight."""

    name: Name
    """Name of the criterion in figures and votes."""
    text: Text
    """What a better answer does, in a sentence; shown to the judge."""
    weight: Positive = 1.0
    """Weight of the criterion's verdict in the combined one."""


class Price(Settings):
    """Money for a million tokens, in whatever currency the budget is in."""

    prompt: NotNegative = 0.0
    """Price of a million prompt tokens."""
    answer: NotNegative = 0.0
    """Price of a million generated tokens."""


class Budget(Settings):
    """What may be spent, on all of a stage's questions; what was paid for before, and is kept, costs nothing again."""

    tokens: Count | None = None
    """Tokens of prompts and answers together. null: unbounded."""
    money: Positive | None = None
    """Money, in the currency of `price`. null: unbounded."""

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.tokens is None and self.money is None:
            raise ValueError("a budget bounds tokens, money or both")
        return self


class ModelServer(Settings):
    """A server over HTTP that holds a model: what is asked of it is bounded in time, rate and money."""

    url: Annotated[str, Field(pattern=r"^https?://[^@\s]+$")]
    """Base address up to and with `/v1`; no user or password in it."""
    model: Text
    """The model's name on the server."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{2,63}$")] | None = None
    """Environment variable that holds the key. null: no key is sent."""
    concurrency: Count = 8
    """Requests in flight at a time."""
    requests_per_minute: Positive | None = None
    """Upper bound on the request rate. null: none."""
    timeout: Positive = 60.0
    """Seconds for one attempt."""
    retries: Annotated[int, Field(ge=0, le=20)] = 4
    """Attempts after the first, for transient failures."""
    max_wait: Positive = 120.0
    """Longest pause between two attempts in seconds, whatever the server asks for."""
    price: Price = Price()
    """What tokens cost."""
    budget: Budget | None = None
    """What may be spent. null: unbounded."""

    @model_validator(mode="after")
    def _money_has_a_price(self) -> Self:
        if self.budget is not None and self.budget.money is not None and not (self.price.prompt or self.price.answer):
            raise ValueError("a budget in money needs a price")
        return self

    def origin(self) -> str:
        """What stands in the lineage of what it answered."""
        return f"server {self.url}, model {self.model}"


class Endpoint(ModelServer):
    """An OpenAI-compatible server: ``POST <url>/chat/completions``."""

    json_schema: bool = True
    """Send the answer's JSON schema as `response_format`, which the server must support."""
    when_spent: Literal["stop", "use"] = "stop"
    """When the budget is spent: `stop` ends the stage, `use` continues with what was answered until then."""


class Writer(Settings):
    """A model that writes: one of a stage's, or one behind an OpenAI-compatible endpoint."""

    model: Name | None = None
    """A stage that makes a policy, or `base`. One of `model` and `endpoint` is required."""
    endpoint: Endpoint | None = None
    """An OpenAI-compatible server that writes."""
    max_tokens: Count = 256
    """Tokens of one answer."""
    temperature: NotNegative = 0.7
    """Sampling temperature. 0: greedy."""

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
    """The judge reads label probabilities of a local model."""
    model: Name = BASE
    """A stage that makes a policy, or `base`."""
    folder: str | None = None
    """A model's folder instead of `model`, such as a registered version's; relative to the recipe."""
    form: Literal["pairwise", "score"] = "pairwise"
    """`pairwise` compares two answers; `score` rates one from 1 to 5."""
    question: Text = QUESTION
    """What the judge is asked about the answers."""
    examples: tuple[Example, ...] = ()
    """Judged pairs shown to the judge (few-shot), for form `pairwise`."""
    score_examples: tuple[ScoreExample, ...] = ()
    """Scored answers shown to the judge (few-shot), for form `score`."""
    shots: Count | None = None
    """How many of the examples each question is shown. null: all of them."""
    choose: Choice = "fixed"
    """Which of them: the first (`fixed`), others for each question (`random`), or those whose prompts are nearest to
    the question in their words (`nearest`; BM25, Robertson and Zaragoza 2009), the nearest last."""
    batch_size: Count = 16
    """Pairs in one forward pass."""
    max_answer_tokens: Count = 512
    """Tokens at which each answer is truncated; the judge is told so."""
    min_label_mass: Fraction = 0.05
    """Least probability that the labels must have together; below it there is no verdict."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _check_model(self.model, self.folder)
        _check_examples(self.form, self.examples, self.score_examples)
        _check_shots(self.shots, self.choose, len(self.examples) + len(self.score_examples))
        return self


class RewardModelJudge(Settings):
    """The sigmoid of the difference of two scores of a trained reward model (Bradley–Terry)."""

    kind: Literal["reward_model"]
    """The judge is a reward model."""
    model: Name
    """A stage of kind `reward`."""
    batch_size: Count = 32
    """Answers in one forward pass."""


class PairClassifierJudge(Settings):
    """A discriminative judge: a classifier that reads prompt and both answers together, trained on preferences."""

    kind: Literal["pair_classifier"]
    """The judge is a pair classifier."""
    model: Name
    """A stage of kind `pair_classifier`."""
    batch_size: Count = 32
    """Pairs in one forward pass."""


class GenerativeJudge(Settings):
    """Writes its verdict as JSON: a model behind an endpoint, or a local one. What cannot be parsed is never guessed.

    ``ranking`` ranks all answers to a prompt that are asked about at once; ``rubric`` judges each criterion by itself.
    """

    kind: Literal["generative"]
    """The judge writes its verdict as JSON."""
    endpoint: Endpoint | None = None
    """An OpenAI-compatible server that judges. One of `endpoint`, `model` and `folder` is required."""
    model: Name | None = None
    """A stage that makes a policy, or `base`."""
    folder: str | None = None
    """A model's folder, such as a registered version's; relative to the recipe."""
    form: Form = "pairwise"
    """`pairwise` compares two answers, `score` rates one from 1 to 10, `ranking` orders all, `rubric` judges each
    criterion."""
    question: Text = QUESTION
    """What the judge is asked about the answers."""
    criteria: tuple[JudgeCriterion, ...] = ()
    """Criteria of form `rubric`."""
    reasoning: bool = False
    """Ask for a reason before the verdict (chain of thought). A rubric's criteria always have one."""
    examples: tuple[Example, ...] = ()
    """Judged pairs shown to the judge (few-shot), for forms `pairwise` and `ranking`."""
    score_examples: tuple[ScoreExample, ...] = ()
    """Scored answers shown to the judge (few-shot), for form `score`."""
    shots: Count | None = None
    """How many of the examples each question is shown. null: all of them."""
    choose: Choice = "fixed"
    """Which of them: the first (`fixed`), others for each question (`random`), or those whose prompts are nearest to
    the question in their words (`nearest`; BM25, Robertson and Zaragoza 2009), the nearest last."""
    max_tokens: Count = 256
    """Tokens of one of the judge's answers."""
    temperature: NotNegative = 0.0
    """Sampling temperature of the judge. 0: greedy."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if sum(one is not None for one in (self.endpoint, self.model, self.folder)) != 1:
            raise ValueError("name one of endpoint, model and folder: who judges")
        if (self.form == "rubric") != bool(self.criteria):
            raise ValueError("form rubric has criteria, and no other form has")
        if len({criterion.name for criterion in self.criteria}) < len(self.criteria):
            raise ValueError("two criteria have the same name")
        _check_examples(self.form, self.examples, self.score_examples)
        _check_shots(self.shots, self.choose, len(self.examples) + len(self.score_examples))
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


def _check_shots(shots: int | None, choose: Choice, examples: int) -> None:
    if shots is None and choose != "fixed":
        raise ValueError(f"choose={choose} does nothing while all examples are shown: set shots")
    if shots is not None and shots > examples:
        raise ValueError(f"shots={shots}, and there are {examples} examples: give more, or show fewer")


def check_calibration(judge: object, calibrated_by: str | None) -> None:
    """Raises ValueError where a calibration is named without the judge that it is of."""
    if judge is None and calibrated_by is not None:
        raise ValueError("calibrated_by is the calibration of a judge: give the judge too")
