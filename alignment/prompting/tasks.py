"""A task's questions and examples as a benchmark asks them, and what is wrong with them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from alignment.errors import Fault, InputError, shortened
from alignment.prompting.answers import canonical
from alignment.prompting.forms import AskedQuestion, put
from alignment.prompting.questions import NumberedQuestions, Question, scan_questions
from alignment.recipe.stages.experiments.benchmark import BenchmarkStage, QuestionTask
from alignment.recipe.stages.prompting import PromptForm
from alignment.reward.instructions import checked_instructions


@dataclass(frozen=True, slots=True)
class LoadedTask:
    """What a task's files hold: the questions that are asked, and the examples."""

    settings: QuestionTask
    questions: list[Question]
    examples: list[Question]

    def put(self, form: PromptForm, seed: int) -> list[AskedQuestion]:
        """Its questions in a form."""
        return put(self.settings, form, self.questions, self.examples, seed)

    def right(self, question: Question) -> str:
        """The right answer, as answers are read."""
        answer = canonical(question.answer, self.settings)
        assert answer is not None  # checked when it was loaded
        return answer


def load_tasks(stage: BenchmarkStage, files: Mapping[str, Path]) -> dict[str, LoadedTask]:
    """Every task of a benchmark; ``files`` as :meth:`BenchmarkStage.named_files` names them. Raises InputError with all
    faults."""
    loaded, faults = scan_tasks(stage, files)
    if faults:
        raise InputError(faults)
    return loaded


def scan_tasks(stage: BenchmarkStage, files: Mapping[str, Path]) -> tuple[dict[str, LoadedTask], list[Fault]]:
    """The tasks in which nothing is wrong, and the faults of the others."""
    loaded: dict[str, LoadedTask] = {}
    faults: list[Fault] = []
    for name, task in stage.tasks.items():
        own: list[Fault] = []
        questions = _scanned(files[f"{name}.questions"], task, own)
        examples = _scanned(files[f"{name}.examples"], task, own) if task.examples is not None else []
        if not own:
            own += _example_faults(stage, name, task, questions, examples, files)
        faults += own
        if not own:
            asked = sorted((one for _row, one in questions), key=lambda one: one.prompt.id)[: task.limit]
            loaded[name] = LoadedTask(task, asked, [one for _row, one in examples])
    return loaded, faults


def _scanned(path: Path, task: QuestionTask, faults: list[Fault]) -> NumberedQuestions:
    try:
        rows, found = scan_questions(path)
    except InputError as error:
        rows, found = [], list(error.faults)
    found += list(_answer_faults(rows, task, path))
    faults += shortened(found)
    return rows


def _answer_faults(rows: NumberedQuestions, task: QuestionTask, path: Path) -> Iterator[Fault]:
    if task.answer == "instructions":
        numbered = [(row, question.prompt.model_copy(update={"reference": question.answer})) for row, question in rows]
        yield from checked_instructions(numbered, path, "ask another kind of answer")
        return
    for row, question in rows:
        if canonical(question.answer, task) is not None:
            continue
        problem, remedy = f"the right answer holds no {task.answer}", "mend it, or remove the row"
        if task.answer == "label":
            problem, remedy = "the right answer is none of the labels", f"use one of {', '.join(task.labels)}"
        yield Fault(problem, remedy, str(path), row, "reference")


def _example_faults(
    stage: BenchmarkStage, name: str, task: QuestionTask, questions: NumberedQuestions, examples: NumberedQuestions,
    files: Mapping[str, Path],
) -> Iterator[Fault]:  # fmt: skip
    """Too few examples, examples without the reasoning that is shown, and questions that an example answers."""
    if task.examples is None:
        return
    file = str(files[f"{name}.examples"])
    for form_name, form in stage.forms.items():
        if form.shots > len(examples):
            problem = f"{len(examples)} examples, and the form {form_name} shows {form.shots}"
            yield Fault(problem, "add examples, or show fewer", file)
    if any(form.shots and form.reasoning for form in stage.forms.values()):
        without = [row for row, example in examples if example.reasoning is None]
        yield from shortened([
            Fault("no reasoning, which a form shows", 'add the column "reasoning"', file, row, "reasoning")
            for row in without
        ])  # fmt: skip
    asked = {one.prompt.id: row for row, one in questions}
    both = [(row, asked[one.prompt.id]) for row, one in examples if one.prompt.id in asked]
    yield from shortened([
        Fault(f"the question of row {other} of {task.questions} with its answer", "remove the example", file, row)
        for row, other in both
    ])  # fmt: skip
