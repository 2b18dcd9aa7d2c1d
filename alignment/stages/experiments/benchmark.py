"""The stage ``benchmark``: questions with one right answer, put to models in several forms of prompt.

It writes ``benchmark.json``, the table (:class:`Benchmark`), ``prompts.jsonl``, every prompt as it was put, and
``answers.jsonl``, every answer with what was read of it. Answers are drawn in pieces, side by side where there are
workers, and each piece is kept as a checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from alignment.chat import render_prompt
from alignment.data.jsonl import read_records, write_records
from alignment.digests import content_id
from alignment.durable_files import write_text
from alignment.parallel_map import all_of
from alignment.prompting.answers import vote
from alignment.prompting.comparison import (
    Cell,
    CellDifference,
    best_forms,
    form_differences,
    model_differences,
    share,
)
from alignment.prompting.forms import AskedQuestion
from alignment.prompting.tasks import LoadedTask, load_tasks
from alignment.prompting.verified import readings
from alignment.recipe.base import BASE
from alignment.recipe.stages.experiments.benchmark import BenchmarkStage
from alignment.records import Prompt, Record
from alignment.rollouts.policy_pool import PolicyPool
from alignment.rollouts.seeds import response_seed
from alignment.stage import Progress, StageContext, StageResult


class DrawnAnswers(Record):
    """The answers of one model to one prompt."""

    prompt_id: str
    texts: tuple[str, ...]
    tokens: int  # of all of them
    prompt_tokens: int


class AnsweredQuestion(Record):
    """A question's answers in one cell: what was read of each (null: nothing), what counts, and whether it is right."""

    model: str
    task: str
    form: str
    question_id: str
    prompt_id: str
    texts: tuple[str, ...]
    read: tuple[str | None, ...]
    answer: str | None
    wanted: str
    right: bool


class BestForm(Record):
    """The form of most right answers, and those that are not told apart from it."""

    model: str
    task: str
    form: str
    alike: tuple[str, ...]


class Benchmark(Record):
    """The table of a benchmark. ``examples`` holds a prompt of each task and form, by ``task/form``."""

    questions: dict[str, int]
    cells: tuple[Cell, ...]
    form_differences: tuple[CellDifference, ...]
    model_differences: tuple[CellDifference, ...]
    best: tuple[BestForm, ...]
    examples: dict[str, Prompt]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some questions of one cell."""

    model: str
    task: str
    form: str
    asked: tuple[AskedQuestion, ...]


def run(settings: BenchmarkStage, context: StageContext) -> StageResult:
    """Asks, reads and compares. Raises InputError where a file of questions is not as it should be."""
    with context.working():
        tasks = load_tasks(settings, context.data)
        put = {
            (task, form): loaded.put(how, context.run.seed)
            for task, loaded in tasks.items()
            for form, how in settings.forms.items()
        }
    pieces = [
        piece
        for model in settings.models
        for key, asked in put.items()
        for piece in _pieces(settings, model, *key, asked)
    ]
    drawn = _drawn(settings, context, pieces)
    with context.working():
        answered = _read(settings, tasks, put, drawn)
        found = _table(settings, tasks, put, drawn, answered)
    prompts = {one.prompt.id: one.prompt for asked in put.values() for one in asked}
    write_records(context.output / "prompts.jsonl", prompts.values())
    write_records(context.output / "answers.jsonl", answered)
    write_text(context.output / "benchmark.json", found.model_dump_json(indent=1) + "\n")
    return StageResult("experiment", metrics(found), tokens_sampled=sum(one.tokens for one in drawn.values()))


def _pieces(settings: BenchmarkStage, model: str, task: str, form: str, asked: Sequence[AskedQuestion]) -> list[Piece]:
    """Questions of like length together, as many as make a batch of answers."""
    ordered = sorted(asked, key=lambda one: (sum(len(turn.content) for turn in one.prompt.messages), one.prompt.id))
    size = max(1, settings.batch_size // settings.forms[form].votes)
    return [Piece(model, task, form, tuple(ordered[start : start + size])) for start in range(0, len(ordered), size)]


Key = tuple[str, str, str, str]  # model, task, form, question


def _drawn(settings: BenchmarkStage, context: StageContext, pieces: Sequence[Piece]) -> dict[Key, DrawnAnswers]:
    paths = [context.checkpoints / f"answers-{_identity(settings, context, piece)}.jsonl" for piece in pieces]
    total, done, tokens = sum(len(piece.asked) for piece in pieces), 0, 0

    def heard(rows: list[DrawnAnswers]) -> None:
        nonlocal done, tokens
        done += len(rows)
        tokens += sum(row.tokens for row in rows)
        context.report(Progress(done, total, {}, tokens))

    found = all_of(
        pieces, answerer, settings, context,
        read=lambda place: read_records(paths[place], DrawnAnswers) if paths[place].exists() else None,
        write=lambda place, rows: write_records(paths[place], rows),
        heard=heard,
    )  # fmt: skip
    return {
        (piece.model, piece.task, piece.form, one.question.prompt.id): row
        for piece, rows in zip(pieces, found, strict=True)
        for one, row in zip(piece.asked, rows, strict=True)
    }


def _identity(settings: BenchmarkStage, context: StageContext, piece: Piece) -> str:
    """What a piece's answers depend on."""
    form = settings.forms[piece.form]
    asked = [[one.question.prompt.id, one.prompt.id] for one in piece.asked]
    return content_id(
        [context.inputs[piece.model].digest, form.votes, settings.form_sampling(form).model_dump(), asked]
    )


def answerer(settings: BenchmarkStage, context: StageContext) -> Callable[[Piece], list[DrawnAnswers]]:
    """What draws the answers to a piece, wherever it is called."""
    pool = PolicyPool(context.inputs[BASE], context.run)

    def answered(piece: Piece) -> list[DrawnAnswers]:
        artifact, form = context.inputs[piece.model], settings.forms[piece.form]
        pool.keep_only(artifact)
        policy = pool.use(artifact)
        tokens = [render_prompt(policy.tokenizer, one.prompt.messages) for one in piece.asked]
        # By the question and not by its prompt: every form and every model draws with the same numbers.
        seeds = [
            response_seed(context.run.seed, one.question.prompt.id, place)
            for one in piece.asked
            for place in range(form.votes)
        ]
        engine = policy.engine(settings.batch_size)
        groups = engine.generate(tokens, sampling=settings.form_sampling(form), seeds=seeds, per_prompt=form.votes)
        return [
            DrawnAnswers(prompt_id=one.prompt.id, texts=tuple(answer.text for answer in group),
                  tokens=sum(len(answer.tokens) for answer in group), prompt_tokens=len(ids))
            for one, ids, group in zip(piece.asked, tokens, groups, strict=True)
        ]  # fmt: skip

    return answered


def _read(
    settings: BenchmarkStage,
    tasks: Mapping[str, LoadedTask],
    put: Mapping[tuple[str, str], Sequence[AskedQuestion]],
    drawn: Mapping[Key, DrawnAnswers],
) -> list[AnsweredQuestion]:
    answered = []
    for model in settings.models:
        for (task, form), asked in put.items():
            loaded, reasoning = tasks[task], settings.forms[form].reasoning
            answers = [(one.question, drawn[model, task, form, one.question.prompt.id].texts) for one in asked]
            readable = readings(loaded.settings, answers, reasoning=reasoning)
            for one, (question, texts), read in zip(asked, answers, readable, strict=True):
                answer, wanted = vote(read), loaded.right(question)
                answered.append(
                    AnsweredQuestion(
                        model=model, task=task, form=form, question_id=question.prompt.id, prompt_id=one.prompt.id,
                        texts=texts, read=read, answer=answer, wanted=wanted, right=answer == wanted,
                    )
                )  # fmt: skip
    return answered


def _table(
    settings: BenchmarkStage,
    tasks: Mapping[str, LoadedTask],
    put: Mapping[tuple[str, str], Sequence[AskedQuestion]],
    drawn: Mapping[Key, DrawnAnswers],
    answered: Sequence[AnsweredQuestion],
) -> Benchmark:
    rows: dict[tuple[str, str, str], list[AnsweredQuestion]] = {}
    for one in answered:
        rows.setdefault((one.model, one.task, one.form), []).append(one)
    cells = tuple(_cell(key, own, [drawn[(*key, one.question_id)] for one in own]) for key, own in rows.items())
    verdicts = {key: [one.right for one in own] for key, own in rows.items()}
    between_forms = tuple(form_differences(verdicts))
    best = best_forms(cells, between_forms)
    return Benchmark(
        questions={task: len(loaded.questions) for task, loaded in tasks.items()},
        cells=cells,
        form_differences=between_forms,
        model_differences=tuple(model_differences(verdicts)),
        best=tuple(
            BestForm(model=model, task=task, form=forms[0], alike=forms[1:]) for (model, task), forms in best.items()
        ),
        examples={f"{task}/{form}": asked[0].prompt for (task, form), asked in put.items()},
    )


def _cell(key: tuple[str, str, str], own: Sequence[AnsweredQuestion], drawn: Sequence[DrawnAnswers]) -> Cell:
    model, task, form = key
    count = len(own)
    return Cell(
        model=model,
        task=task,
        form=form,
        right=share([one.right for one in own]),
        unread=sum(one.answer is None for one in own) / count,
        prompt_tokens=sum(one.prompt_tokens for one in drawn) / count,
        answer_tokens=sum(one.tokens for one in drawn) / count,
    )


def metrics(found: Benchmark) -> dict[str, float]:
    """The share of right answers of every cell with its interval, and of how many nothing could be read."""
    values = {"questions": float(sum(found.questions.values()))}
    for cell in found.cells:
        name = f"{cell.model}.{cell.task}.{cell.form}"
        values |= {
            f"right.{name}": cell.right.value, f"right.{name}.low": cell.right.low,
            f"right.{name}.high": cell.right.high, f"unread.{name}": cell.unread,
        }  # fmt: skip
    return values
