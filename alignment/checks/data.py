"""What is wrong with a recipe's data, known without a model: files, rows, columns, and what leaks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from alignment.checks.judges import judge_places
from alignment.data.columns import shown
from alignment.data.corpus import scan_corpus
from alignment.data.demonstrations import scan_demonstrations
from alignment.data.feedback import scan_feedback
from alignment.data.pairing import PreferenceFile
from alignment.data.preferences import scan_preferences
from alignment.data.prompts import scan_prompts
from alignment.data.split import opening, split_by_digest
from alignment.errors import Fault, FaultCollector, InputError, shortened
from alignment.preferences.preference_files import read_known
from alignment.preferences.principles import load_constitution
from alignment.preferences.rubric import load_rubric
from alignment.prompting.stage_prompts import leaks, put_prompts, scan_examples
from alignment.prompting.tasks import scan_tasks
from alignment.recipe.files import DATA_FILES
from alignment.recipe.graph import of_type
from alignment.recipe.judges import GenerativeJudge, LabelProbabilitiesJudge
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.experiments.benchmark import BenchmarkStage
from alignment.recipe.stages.feedback.ai_feedback import ConstitutionStage
from alignment.recipe.stages.feedback.preferences import HumanPreferencesStage, PreferenceFileStage
from alignment.recipe.stages.prompting import Prompting
from alignment.recipe.stages.reward import RewardStage
from alignment.recipe.stages.spec import StageSettings
from alignment.records import Demonstration, Feedback, PreferencePair, Prompt

Rows = Sequence[tuple[int, Prompt]]  # prompts with their rows
FORM = "prompting"  # the form of a stage that has one


@dataclass(slots=True)
class RecipeData:
    """What the files hold, with rows. ``incomplete`` are those with rows that could not be read: what the others are
    without cannot be told of them."""

    prompts: list[tuple[int, Prompt]] = field(default_factory=list)
    held_out_prompts: list[tuple[int, Prompt]] = field(default_factory=list)
    demonstrations: list[tuple[int, Demonstration]] = field(default_factory=list)
    feedback: list[tuple[int, Feedback]] = field(default_factory=list)
    preferences: PreferenceFile = field(default_factory=lambda: PreferenceFile([]))
    put_prompts: dict[str, dict[str, list[Prompt]]] = field(default_factory=dict)  # in forms, by stage and form
    benchmark_questions: list[Prompt] = field(default_factory=list)
    corpus: tuple[str, ...] = ()
    incomplete: set[str] = field(default_factory=set)


def asked_prompts(recipe: Recipe, prompts: Rows, own: Rows) -> Rows:
    """The held-out prompts that evaluations ask: those of their ``own`` file, else the share of ``prompts``."""
    return own or split_by_digest(prompts, recipe.data.held_out, key=lambda item: opening(item[1]))[1]


def _held_out(recipe: Recipe, data: RecipeData) -> Rows:
    return asked_prompts(recipe, data.prompts, data.held_out_prompts)


def _asked(recipe: Recipe, stage: StageSettings, data: RecipeData) -> list[Prompt]:
    """The prompts that a stage puts in its form: those that it trains on, or the held-out ones that it asks."""
    if not stage.asks_held_out() and "prompts" in stage.inputs():
        pairs = split_by_digest(data.preferences.pairs, recipe.data.held_out, key=opening)[1]
        return [Prompt(id=pair.prompt_id, messages=pair.prompt) for pair in pairs]
    if stage.asks_held_out():
        return [prompt for _row, prompt in _held_out(recipe, data)]
    return [prompt for _row, prompt in split_by_digest(data.prompts, recipe.data.held_out,
                                                       key=lambda item: opening(item[1]))[0]]  # fmt: skip


def form_faults(name: str, form: Prompting, files: Mapping[str, Path], away: Sequence[Prompt]) -> list[Fault]:
    """What is wrong with the examples of a stage's form: their rows, and those that it asks or that are held out."""
    if form.examples is None:
        return []
    file = files[form.examples]
    try:
        rows, faults = scan_examples(file, form)
    except InputError as error:
        return list(error.faults)
    return faults or shortened(
        [
            Fault(f"{name} asks {what!r} itself, or it is held out", "remove the example", str(file), row)
            for row, what in leaks(rows, away)
        ]
    )


def _read_forms(recipe: Recipe, files: Mapping[str, Path], data: RecipeData, collected: FaultCollector) -> set[str]:
    """Puts the prompts of stages in their forms; the files of examples that were read."""
    read = set[str]()
    for name, stage in recipe.stages.items():
        form: Prompting | None = stage.prompting_used()
        if form is None:
            continue
        asked = _asked(recipe, stage, data)
        faults = form_faults(name, form, files, [*asked, *(one for _row, one in _held_out(recipe, data))])
        collected.faults.extend(faults)
        read |= {form.examples} if form.examples is not None else set()
        if not faults:
            file = None if form.examples is None else files[form.examples]
            data.put_prompts[name] = {FORM: put_prompts(form, asked, file, recipe.run_settings(stage).seed)}
    return read


def read_data(recipe: Recipe, files: Mapping[str, Path]) -> tuple[RecipeData, list[Fault]]:
    """Reads every file that the recipe names: what they hold, and the faults of all of them."""
    data = RecipeData()
    collected = FaultCollector()

    def note(name: str, faults: list[Fault]) -> None:
        collected.faults.extend(shortened(faults) if faults else [])
        if faults:
            data.incomplete.add(name)

    if "prompts" in files:
        data.prompts, _duplicates, faults = scan_prompts(files["prompts"])
        note("prompts", faults)
    if "held_out_prompts" in files:
        data.held_out_prompts, _duplicates, faults = scan_prompts(files["held_out_prompts"])
        note("held_out_prompts", faults)
    if "demonstrations" in files:
        data.demonstrations, _duplicates, faults = scan_demonstrations(files["demonstrations"])
        note("demonstrations", faults)
    if "feedback" in files:
        data.feedback, _duplicates, faults = scan_feedback(files["feedback"])
        note("feedback", faults)
    if "corpus" in files:
        corpus, faults = scan_corpus(files["corpus"])
        data.corpus = corpus.documents
        note("corpus", faults)
    if "preferences" in files:
        stage = next((stage for _name, stage in of_type(recipe.stages, PreferenceFileStage)), None)
        form, limit = (stage.format, stage.limit) if stage else ("auto", None)
        data.preferences = scan_preferences(files["preferences"], form, limit)
        note("preferences", data.preferences.faults)
    constitutions = {
        path for _name, stage in of_type(recipe.stages, ConstitutionStage) for path in stage.named_files().values()
    }
    readers: dict[str, Callable[[Path], Any]] = dict.fromkeys(constitutions, load_constitution)
    readers |= {
        path: read_known
        for _name, stage in of_type(recipe.stages, HumanPreferencesStage)
        for path in stage.named_files().values()
    }
    for name, benchmark in of_type(recipe.stages, BenchmarkStage):
        tasks, faults = scan_tasks(benchmark, {what: files[path] for what, path in benchmark.named_files().items()})
        collected.faults.extend(faults)
        data.benchmark_questions += [one.prompt for task in tasks.values() for one in task.questions]
        data.put_prompts[name] = {
            form: [one.prompt for task in tasks.values() for one in task.put(how, recipe.seed)]
            for form, how in benchmark.forms.items()
        }
    read = _read_forms(recipe, files, data, collected)
    others = (stage for stage in recipe.stages.values() if stage.kind != "benchmark")
    for path in dict.fromkeys(path for stage in others for path in stage.named_files().values() if path not in read):
        collected.attempt(partial(readers.get(path, load_rubric), files[path]), None)
    return data, collected.faults


def data_faults(recipe: Recipe, files: Mapping[str, Path], data: RecipeData) -> list[Fault]:
    """What is wrong with readable data: missing for a stage, leaking, or too little to hold any out."""
    return [
        *_unset_faults(recipe, files),
        *_side_faults(recipe, files, data),
        *_leak_faults(recipe, files, data),
        *_judge_example_faults(recipe, data),
        *_margin_faults(recipe, files, data),
        *_label_faults(recipe, files, data),
    ]


def _judge_example_faults(recipe: Recipe, data: RecipeData) -> Iterator[Fault]:
    """Examples that a judge is shown although their prompt is one whose answers it may be asked about."""
    prompts = [prompt for _row, prompt in (*data.prompts, *data.held_out_prompts)]
    asked = {opening(prompt) for prompt in prompts} | {opening(pair) for pair in data.preferences.pairs}
    for name, stage in recipe.stages.items():
        for at, judge in judge_places(name, stage):
            if not isinstance(judge, LabelProbabilitiesJudge | GenerativeJudge):
                continue
            texts = {f"examples.{place}": one.prompt for place, one in enumerate(judge.examples)}
            texts |= {f"score_examples.{place}": one.prompt for place, one in enumerate(judge.score_examples)}
            for where, text in texts.items():
                if " ".join(text.split()).casefold() in asked:
                    problem = f"{shown(repr(text))} is a prompt of the data, whose answers are judged"
                    yield Fault(problem, "take another example", field=f"{at}.{where}.prompt")


def _unset_faults(recipe: Recipe, files: Mapping[str, Path]) -> Iterator[Fault]:
    for name, stage in recipe.stages.items():
        for needed in stage.data_files(files):
            if needed not in DATA_FILES or needed in files:
                continue
            problem, remedy = f"not set, and the stage {name} reads it", f"set data.{needed} to a file"
            if stage.asks_held_out():
                problem = f"not set, and the stage {name} asks its held-out part"
                if needed in stage.spec.reads:
                    remedy += f", or stages.{name}.{needed} to a stage of kind preference_file"
            yield Fault(problem, remedy, field=f"data.{needed}")


def _side_faults(recipe: Recipe, files: Mapping[str, Path], data: RecipeData) -> Iterator[Fault]:
    """A side of the split that is empty although a stage works on it."""
    share = recipe.data.held_out
    stages = recipe.stages.values()
    asked = any(stage.asks_held_out() and "prompts" in stage.data_files(files) for stage in stages)
    sampled = any(
        "prompts" in stage.data_files(files) and not (stage.evaluates() and stage.asks_held_out()) for stage in stages
    )
    given = any("preferences" in stage.data_files(files) for stage in stages)
    wanted: list[tuple[str, list[Any], bool, bool]] = [
        ("prompts", [prompt for _row, prompt in data.prompts], sampled, asked),
        ("preference pairs", data.preferences.pairs, given, given),
    ]
    for (what, items, needs_train, needs_held_out), file in zip(wanted, ("prompts", "preferences"), strict=True):
        if file in data.incomplete:
            continue
        train, held_out = split_by_digest(items, share, key=opening)
        if items and ((needs_train and not train) or (needs_held_out and not held_out)):
            side = "trained on" if held_out else "held out"
            problem = f"of {len(items)} {what} none is {side} at the share {share}"
            yield Fault(problem, f"give more {what}, or change the share", field="data.held_out")


def _leak_faults(recipe: Recipe, files: Mapping[str, Path], data: RecipeData) -> list[Fault]:
    """Demonstrations and marked answers to what evaluation asks: a policy would be graded on what it was shown."""
    asked: list[Prompt | PreferencePair] = []
    for stage in recipe.stages.values():
        if stage.asks_held_out():
            asked += [prompt for _row, prompt in data.prompts]
        elif "prompts" in stage.inputs():
            asked += data.preferences.pairs
    held_out = {opening(item) for item in split_by_digest(asked, recipe.data.held_out, key=opening)[1]}
    questions = {opening(item) for item in data.benchmark_questions}
    trained = list(_trained_on(data))
    if questions and any("prompts" in stage.spec.data and not stage.evaluates() for stage in recipe.stages.values()):
        numbered = [(opening(prompt), row) for row, prompt in data.prompts]
        kept = split_by_digest(numbered, recipe.data.held_out, key=lambda item: item[0])[0]
        trained += [("prompts", "prompt", row, text) for text, row in kept]
    found = []
    for name, column, row, text in trained:
        if text in held_out:
            problem, remedy = "the prompt is held out for evaluation", "take the prompt out of the prompts"
        elif text in questions:
            problem, remedy = "the prompt is a benchmark's question", "the question"
        else:
            continue
        words = f"{problem}, and would be trained on here", f"remove the row, or {remedy}"
        found.append(Fault(*words, str(files[name]), row, column))
    return shortened(found)


def _trained_on(data: RecipeData) -> Iterator[tuple[str, str, int, str]]:
    """What is trained on as it is: file, column, row, and how its conversation opens."""
    yield from (("demonstrations", "messages", row, opening(item)) for row, item in data.demonstrations)
    yield from (("feedback", "prompt", row, opening(item)) for row, item in data.feedback)


def _label_faults(recipe: Recipe, files: Mapping[str, Path], data: RecipeData) -> Iterator[Fault]:
    """Marked answers that are all good, or all bad: nothing is there to tell apart."""
    labels = {feedback.label for _row, feedback in data.feedback}
    read = any("feedback" in stage.data_files(files) for stage in recipe.stages.values())
    if read and len(labels) == 1 and "feedback" not in data.incomplete:
        problem = f"label is {str(labels.pop()).lower()} in every row"
        yield Fault(problem, "add answers of the other kind", file=str(files["feedback"]), field="label")


def _margin_faults(recipe: Recipe, files: Mapping[str, Path], data: RecipeData) -> Iterator[Fault]:
    pairs: list[PreferencePair] = data.preferences.pairs
    for name, stage in of_type(recipe.stages, RewardStage):
        source = recipe.stages.get(stage.preferences)
        from_file = source is not None and "preferences" in source.spec.data
        told = bool(pairs) and "preferences" not in data.incomplete
        if stage.use_margin and from_file and told and all(pair.margin is None for pair in pairs):
            problem = f"no pair of {files['preferences']} has a margin"
            yield Fault(problem, "set it to false, or give margins", field=f"stages.{name}.use_margin")
