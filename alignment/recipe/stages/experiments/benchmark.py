"""The settings of a benchmark: questions with one right answer, asked in several forms of prompt."""

from itertools import chain
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from alignment.recipe.base import BASE, Count, Name
from alignment.recipe.stages.prompting import PromptForm, QuestionWording, require_fitting_labels
from alignment.recipe.stages.spec import StageSettings, StageSpec
from alignment.records import Sampling

Answers = Literal["number", "label", "text", "instructions", "code"]


class QuestionTask(QuestionWording):
    """Questions of one sort, and how an answer to them is read."""

    questions: str
    """The questions, each with its right answer as `reference` (or `question` and `answer`, as GSM8K has them): a path,
    relative to the recipe. None of them should have been trained on."""
    examples: str | None = None
    """Solved questions that prompts may show, of the same columns; `reasoning` says how one is solved. null: none."""
    answer: Answers
    """What is read of an answer: its last `number`, the first of `labels` that stands in it as a word, or all of its
    `text` apart from case, white space and punctuation at the ends. After reasoning, of what follows `marker`. With
    `instructions` it is right where it follows all of the row's verifiable instructions (IFEval's columns
    `instruction_id_list` and `kwargs`; Zhou et al. 2023), with `code` where its Python passes the tests in
    `reference`."""
    loose: bool = False
    """With `answer: instructions`: IFEval's loose accuracy instead of the strict one: an instruction is followed also
    where it is without the answer's first line, its last line, or its asterisks."""
    labels: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """The labels, where `answer` is `label`."""
    limit: Count | None = None
    """Questions asked, the same at every run: the first in the order of their digests. null: all."""

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        require_fitting_labels(self.answer, self.labels)
        return self

    @model_validator(mode="after")
    def _a_checker_needs_no_more(self) -> Self:
        if self.loose and self.answer != "instructions":
            raise ValueError("loose belongs to answer: instructions, and only there")
        if self.is_verified and self.examples is not None:
            raise ValueError(f"with answer: {self.answer} a row holds no answer that an example could show")
        return self

    @property
    def is_verified(self) -> bool:
        """Whether a checker says what is right, and nothing is compared."""
        return self.answer in ("instructions", "code")


class BenchmarkStage(StageSettings):
    """Questions with one right answer: how many each model answers right in each form of prompt, and which is best.

    Every model is asked every question in every form with the same seeds. Shares of right answers have Wilson's
    interval; two forms, and two models, are compared question by question, with intervals that hold for all comparisons
    of a table together.
    """

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.experiments.benchmark",
        makes=("experiment",),
        reads={"models": "policy"},
        sharing="pieces",
        headline=("questions",),
    )
    kind: Literal["benchmark"]
    """A benchmark."""
    models: Annotated[tuple[Name, ...], Field(min_length=1)] = (BASE,)
    """The models that are asked: stages, or `base`."""
    tasks: Annotated[dict[Name, QuestionTask], Field(min_length=1)]
    """Sorts of questions, by name."""
    forms: Annotated[dict[Name, PromptForm], Field(min_length=1)] = Field(
        default_factory=lambda: {"zero_shot": PromptForm()}
    )
    """Forms of prompts, by name."""
    sampling: Sampling = Sampling(temperature=0.0, max_new_tokens=64)
    """How answers are drawn. Greedy by default; forms that vote draw at their own temperature."""
    batch_size: Count = 64
    """Answers sampled together."""
    workers: Count | None = None
    """Processes. null: `resources.workers`. Their number does not change the result."""

    @model_validator(mode="after")
    def _models_differ(self) -> Self:
        if len(set(self.models)) < len(self.models):
            raise ValueError("a model stands twice among models")
        return self

    @model_validator(mode="after")
    def _examples_are_there(self) -> Self:
        wanting = [name for name, form in self.forms.items() if form.shots]
        without = [name for name, task in self.tasks.items() if task.examples is None]
        if wanting and without:
            raise ValueError(
                f"forms.{wanting[0]} shows {self.forms[wanting[0]].shots} examples, and tasks.{without[0]} has none; "
                "give tasks." + without[0] + ".examples"
            )
        return self

    @model_validator(mode="after")
    def _checkers_fit_the_forms(self) -> Self:
        verified = next((name for name, task in self.tasks.items() if task.is_verified), None)
        for form_name, form in self.forms.items():
            if verified is not None and (form.reasoning or form.votes > 1):
                what = "reasoning" if form.reasoning else "votes"
                problem = f"forms.{form_name}.{what} needs an answer that can be read and compared"
                raise ValueError(f"{problem}, and tasks.{verified} has its answers checked whole")
        return self

    def named_files(self) -> dict[str, str]:
        """The questions of each task, and its examples."""
        both = (
            ((f"{name}.questions", task.questions), (f"{name}.examples", task.examples))
            for name, task in self.tasks.items()
        )
        return {what: path for what, path in chain.from_iterable(both) if path is not None}

    def evaluates(self) -> bool:
        """Whether it measures policies, on prompts that none was trained on."""
        return True

    def form_sampling(self, form: PromptForm) -> Sampling:
        """How answers to a form are drawn."""
        return form.drawn_by(self.sampling)
