"""Texts that are too long: for the model's context, or for what a training stage looks at."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from alignment.chat import render_example, render_prompt
from alignment.checks.adapters.kinds import virtual_tokens_of
from alignment.checks.data import RecipeData
from alignment.checks.model import Inspected
from alignment.checks.rendering import conversation_problem
from alignment.data.columns import Messages, shown
from alignment.errors import Fault, shortened
from alignment.recipe.files import DATA_FILES
from alignment.recipe.graph import of_type
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.experiments.benchmark import BenchmarkStage
from alignment.recipe.stages.spec import StageSettings
from alignment.records import Feedback, Message, PreferencePair, Prompt


class _Row(NamedTuple):
    """A row's prompt (up to the first answer that a stage learns or draws) and its whole conversations."""

    number: int
    prompt: Messages
    wholes: tuple[Messages, ...] = ()


class _Text(NamedTuple):
    """The length of one row's text in tokens."""

    file: str
    row: int
    tokens: int


class _Texts(NamedTuple):
    """The texts of one file, and a function that gives the longest of them with its answer."""

    prompts: list[_Text]
    longest_whole: Callable[[], _Text | None]


def length_faults(recipe: Recipe, files: Mapping[str, Path], data: RecipeData, model: Inspected) -> list[Fault]:
    """Prompts longer than the context or than a stage's ``max_length``, answers that would not fit after them,
    and conversations that the chat template refuses. Each names the row, its tokens and the limit."""
    faults: list[Fault] = []
    texts = _measured(files, data, model, faults)
    for prompts, _whole in texts.values():
        faults += shortened(list(_over_context(prompts, model)))
    for name, stage in recipe.stages.items():
        read = texts.get(_file_read(stage, recipe, files) or "")
        if read is None:
            continue
        context = None if model.context is None else model.context - virtual_tokens_of(recipe, name)
        if (sampling := stage.sampling_used()) is not None:
            wanted = stage.longest_answer() or sampling.max_new_tokens
            field = "sampling.max_new_tokens" if stage.environment_used() is None else "environment.max_tokens"
            at = f"stages.{name}.{field}"
            if model.parted:
                faults += _written_faults(at, wanted, context)
            else:
                faults += _sampling_faults(at, wanted, stage.longest_prompt(), read, context)
        elif (longest := stage.trained_length()) is not None and stage.encoder_used() is None:
            if "preferences" not in stage.spec.reads:  # files of pairs are full of long ones: dropped and counted
                faults += shortened(list(_over_max_length(name, longest, read, context)))
            faults += _max_length_faults(name, longest, read, context)
    benchmarks = dict(of_type(recipe.stages, BenchmarkStage))
    for name, forms in data.put_prompts.items():
        for form, put in forms.items():
            stage = recipe.stages[name]
            if name in benchmarks:
                sampling = benchmarks[name].form_sampling(benchmarks[name].forms[form])
                faults += _form_faults(f"stages.{name}.forms.{form}", put, sampling.max_new_tokens, model)
            elif (own := stage.sampling_used()) is not None:
                faults += _form_faults(f"stages.{name}.{form}", put, own.max_new_tokens, model)
    return faults


def _form_faults(at: str, prompts: Iterable[Prompt], new: int, model: Inspected) -> Iterator[Fault]:
    """A form whose prompts the template refuses, or after whose longest prompt ``new`` tokens do not fit."""
    longest = 0
    for prompt in prompts:
        if (problem := conversation_problem(model.tokenizer, prompt.messages)) is not None:
            said = prompt.messages[-1].content.splitlines()[0]
            yield Fault(f"{problem[0]} (asked: {shown(said)})", problem[1], field=at)
            break
        longest = max(longest, len(render_prompt(model.tokenizer, prompt.messages)))
    if model.context is not None and longest + new > model.context:
        problem_words = (
            f"{new} new tokens after the longest prompt's {longest} are more than the model's context of "
            f"{model.context}"
        )
        yield Fault(problem_words, "show fewer examples, or set max_new_tokens to less", field=at)


def _measured(files: Mapping[str, Path], data: RecipeData, model: Inspected, faults: list[Fault]) -> dict[str, _Texts]:
    """Every file's texts, rendered once; conversations that cannot be rendered go to ``faults``."""
    pairs = data.preferences
    rows = {
        "prompts": [_Row(row, prompt.messages) for row, prompt in data.prompts],
        "held_out_prompts": [_Row(row, prompt.messages) for row, prompt in data.held_out_prompts],
        "demonstrations": [_Row(row, _opening(demo.messages), (demo.messages,)) for row, demo in data.demonstrations],
        "feedback": [_Row(row, one.prompt, (_marked(one),)) for row, one in data.feedback],
        "preferences": [_Row(pairs.rows[pair.id], pair.prompt, _dialogues(pair)) for pair in pairs.pairs],
    }
    return {name: _file_texts(str(files[name]), found, model, faults) for name, found in rows.items() if found}


def _marked(one: Feedback) -> tuple[Message, ...]:
    """The whole conversation of a marked answer."""
    return (*one.prompt, Message(role="assistant", content=one.completion))


def _file_texts(file: str, rows: list[_Row], model: Inspected, faults: list[Fault]) -> _Texts:
    refused: list[Fault] = []
    prompts: list[_Text] = []
    for row in rows:
        problems = (conversation_problem(model.tokenizer, whole) for whole in (row.prompt, *row.wholes))
        problem = next((problem for problem in problems if problem is not None), None)
        if problem is not None:
            refused.append(Fault(*problem, file, row.number))
        else:
            prompts.append(_Text(file, row.number, len(render_prompt(model.tokenizer, row.prompt))))
    faults += shortened(refused)

    def longest_whole() -> _Text | None:
        wholes = [(row.number, whole) for row in rows for whole in row.wholes]
        texts = (_Text(file, number, _whole_length(model, whole)) for number, whole in wholes)
        return None if refused else max(texts, key=lambda text: text.tokens, default=None)

    return _Texts(prompts, longest_whole)


def _whole_length(model: Inspected, whole: Messages) -> int:
    """Tokens of a conversation that the context has to hold: of one that is parted, those of the longer part."""
    ids, mask = render_example(model.tokenizer, whole)
    return max(sum(mask), len(mask) - sum(mask)) if model.parted else len(ids)


def _written_faults(field: str, wanted: int, context: int | None) -> Iterator[Fault]:
    """More tokens than a decoder writes that has its prompt from an encoder."""
    if context is not None and wanted > context:
        problem = f"{wanted} new tokens are more than the {context} that the model's decoder writes"
        yield Fault(problem, f"set it to {context} or less", field=field)


def _over_context(prompts: Iterable[_Text], model: Inspected) -> Iterator[Fault]:
    context = model.context
    for text in prompts:
        if context is not None and text.tokens >= context + model.parted:
            problem = f"the prompt has {text.tokens} tokens, and the model's context is {context}"
            yield Fault(problem, "shorten it, or remove the row", text.file, text.row)


def _over_max_length(name: str, max_length: int, read: _Texts, context: int | None) -> Iterator[Fault]:
    for text in read.prompts:
        if max_length <= text.tokens < (context or text.tokens + 1):
            problem = f"the prompt has {text.tokens} tokens, and {name} cuts at max_length={max_length}"
            remedy = f"shorten it, or raise stages.{name}.max_length: nothing of the answer is left"
            yield Fault(problem, remedy, text.file, text.row)


def _max_length_faults(name: str, max_length: int, read: _Texts, context: int | None) -> Iterator[Fault]:
    """``max_length`` may be above the context as long as no text is."""
    longest = read.longest_whole() if context is not None and max_length > context else None
    if longest is not None and context is not None and longest.tokens > context:
        problem = (
            f"{max_length} is more than the model's context of {context}, "
            f"which row {longest.row} of {longest.file} with {longest.tokens} tokens would overrun"
        )
        yield Fault(problem, f"set it to {context} or less", field=f"stages.{name}.max_length")


def _sampling_faults(
    field: str, wanted: int, longest_kept: int | None, read: _Texts, context: int | None
) -> Iterator[Fault]:
    """``wanted`` tokens may follow a prompt; ``longest_kept``: tokens above which the stage leaves a prompt out."""
    fitting = [text for text in read.prompts if context is None or text.tokens < context]
    fitting = [text for text in fitting if longest_kept is None or text.tokens <= longest_kept]
    longest = max(fitting, key=lambda text: text.tokens, default=None)
    if context is not None and longest is not None and longest.tokens + wanted > context:
        problem = (
            f"{wanted} new tokens after the longest prompt's {longest.tokens} (row {longest.row} of {longest.file}) "
            f"are more than the model's context of {context}"
        )
        remedy = f"set it to {context - longest.tokens} or less, or shorten the prompt"
        yield Fault(problem, remedy, field=field)


def _file_read(stage: StageSettings, recipe: Recipe, files: Mapping[str, Path]) -> str | None:
    """The name of the file whose texts a stage reads, directly or through the stages before it."""
    inputs = stage.inputs()
    if own := [name for name in stage.data_files(files) if name in DATA_FILES]:
        return own[0]
    if "prompts" in inputs:  # held-out prompts of a preference file
        return "preferences"
    for source in inputs.get("preferences", ()):
        maker = recipe.stages.get(source)
        return None if maker is None else "preferences" if "preferences" in maker.spec.data else "prompts"
    return None


def _opening(messages: Messages) -> Messages:
    return tuple(takewhile(lambda message: message.role != "assistant", messages))


def _dialogues(pair: PreferencePair) -> tuple[Messages, ...]:
    return tuple((*pair.prompt, Message(role="assistant", content=text)) for text in (pair.chosen, pair.rejected))
