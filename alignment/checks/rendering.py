"""Conversations that a stage will render, rendered beforehand: what the chat template refuses, drops or rewrites.

Two kinds: the rows of the data, and what the product itself asks (judges' questions with their system message and
examples, a constitution's critique of an earlier answer, a synthesis's principles as system messages).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from alignment.chat import end_turns, render_observation, rendered_pieces, template_faults
from alignment.checks.judges import judge_places
from alignment.control_tokens import control_pattern
from alignment.data.columns import shown
from alignment.errors import Fault
from alignment.judges import prompts as templates
from alignment.models.weights import weight_faults
from alignment.recipe.graph import of_type
from alignment.recipe.judges import (
    AnyJudge,
    GenerativeJudge,
    LabelProbabilitiesJudge,
    folder_data,
    judge_folder,
)
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.feedback.ai_feedback import ConstitutionStage, SynthesisStage
from alignment.records import Message

REASONING = "<think>Why it is so.</think>\n\nIt is so."  # as models that reason answer


def conversation_problem(
    tokenizer: Any, messages: Sequence[Message], *, answered: bool = False, rewritten: bool = False
) -> tuple[str, str] | None:
    """(What is wrong, what to do) with a conversation that a stage is to render; None where nothing is.

    A control token in somebody's text is a fault of the data, which was probably rendered before: it would be read as
    the letters that it is written with. In an answer of the model's own (``answered``) it may stand. Where a talk goes
    on, the template may leave out parts of earlier answers (``rewritten``), as reasoning ones do with their reasons.
    """
    pattern = control_pattern(tokenizer)
    for number, message in enumerate(messages, start=1):
        if answered and message.role == "assistant":
            continue
        if pattern is not None and (found := pattern.search(message.content)):
            problem = f"message {number} (the {message.role}'s) holds {found[0]}, a control token of the model"
            return problem, "remove it, or write it with a space inside: it is the template's to write"
    try:
        pieces = list(rendered_pieces(tokenizer, messages, add_generation_prompt=messages[-1].role != "assistant"))
    except Exception as error:  # a template may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return (
            f"the model's chat template refuses the conversation: {reason}",
            "change its roles to what the template knows",
        )
    text = "".join(piece for piece, _keep in pieces)
    for number, message in enumerate(messages, start=1):
        if rewritten and message.role == "assistant":
            continue
        if message.content.strip() not in text:
            problem = f"the model's chat template leaves out a part of message {number} (the {message.role}'s)"
            return problem, "change the message, or the template"
    return None


def product_faults(recipe: Recipe, files: Mapping[str, Path], tokenizer: Any) -> list[Fault]:
    """What the models' templates refuse of the conversations that stages make by themselves; ``tokenizer`` is the
    base's, with which everything trained from it answers. Judges in folders of their own are looked at as well."""
    faults: list[Fault] = []
    for name, stage in recipe.stages.items():
        for at, judge in judge_places(name, stage):
            questions = _questions(judge)
            if (folder := judge_folder(judge)) is not None:
                faults += _folder_faults(files[folder_data(folder)], questions, f"{at}.folder")
                continue
            for question in questions:
                faults += _refused(tokenizer, question, at, "the judge")
    for place, messages in _own_conversations(recipe):
        faults += _refused(tokenizer, messages, place, "the model")
    for name, stage in recipe.stages.items():
        if (environment := stage.environment_used()) is not None:
            faults += _untold(tokenizer, environment.role, f"stages.{name}.environment.role")
    return list(dict.fromkeys(faults))


def _refused(tokenizer: Any, messages: Sequence[Message], field: str, who: str) -> Iterator[Fault]:
    problem = conversation_problem(tokenizer, messages)
    if problem is not None:
        roles = ", ".join(message.role for message in messages)
        words = problem[0].replace("the model's chat template", "the chat template")
        remedy = "take a model whose template knows them, or set model.chat_template"
        yield Fault(f"{who} is asked in turns of {roles}, and {words}", remedy, field=field)


def _untold(tokenizer: Any, role: Literal["tool", "user"], field: str) -> Iterator[Fault]:
    """An observation that the template cannot write behind an answer."""
    question, told = Message(role="user", content="What is it?"), Message(role=role, content="It is so.")
    try:
        render_observation(tokenizer, [question], told)
    except Exception as error:  # a template may raise anything
        reason = shown((str(error) or type(error).__name__).splitlines()[0], 160)
        remedy = "take a model whose template knows tools" + (", or set it to user" if role == "tool" else "")
        yield Fault(f"observations are told in the role {role}, and {reason}", remedy, field=field)


def _own_conversations(recipe: Recipe) -> Iterator[tuple[str, list[Message]]]:
    """(field, conversation) of what stages ask of a model of this process beside its data."""
    question = Message(role="user", content="What is it?")
    for name, stage in of_type(recipe.stages, ConstitutionStage):
        if stage.writer.endpoint is not None:
            continue
        turns = [question, Message(role="assistant", content=REASONING), Message(role="user", content="Criticise it.")]
        yield f"stages.{name}.writer", turns
        critique = [Message(role="assistant", content="It is vague."), Message(role="user", content="Now revise it.")]
        yield f"stages.{name}.writer", [*turns, *critique]
    for name, synthesis in of_type(recipe.stages, SynthesisStage):
        if not synthesis.models:
            continue
        for label, principle in synthesis.principles.items():
            system = Message(role="system", content=principle)
            yield f"stages.{name}.principles.{label}", [system, question]


def _questions(judge: AnyJudge) -> list[tuple[Message, ...]]:
    """What a local judge is asked, with texts of no meaning in the place of prompts and answers."""
    if isinstance(judge, LabelProbabilitiesJudge):
        turns: list[Message] = []
        for number in range(len(judge.score_examples) + len(judge.examples)):
            turns.append(Message(role="user", content=f"Which is better? {number}"))
            turns.append(Message(role="assistant", content=f"The better answer is A. {number}"))
        return [(*turns, Message(role="user", content="Which is better?"))]
    if not isinstance(judge, GenerativeJudge) or judge.endpoint is not None:
        return []
    if judge.form == "score":
        return [templates.score(judge, "p", "a").messages]
    if judge.form == "ranking":
        return [templates.ranking(judge, "p", ["a", "b"]).messages]
    criteria = judge.criteria if judge.form == "rubric" else (None,)
    return [templates.pairwise(judge, "p", "a", "b", criterion).messages for criterion in criteria]


def _folder_faults(folder: Path, questions: Sequence[Sequence[Message]], field: str) -> Iterator[Fault]:
    """What is wrong with a judge's own model folder; one that is not there is a fault of the judge's settings."""
    if not folder.is_dir() or not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        return
    faults = weight_faults(folder)
    yield from faults
    if faults:
        return
    from transformers import AutoTokenizer

    from alignment.models.seq2seq.architecture import holds_encoder_decoder

    if holds_encoder_decoder(folder):
        problem = f"{folder} holds an encoder with a decoder, which judges nothing here"
        yield Fault(problem, "name the folder of a decoder alone, such as a Llama or a Qwen", field=field)
        return

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # each library behind it raises its own kind
        reason = shown((str(error) or type(error).__name__).splitlines()[0], 160)
        yield Fault(f"{folder} has no tokenizer that can be read: {reason}", "give a whole model folder", field=field)
        return
    end_turns(tokenizer, folder)
    faults = template_faults(tokenizer, str(folder))
    yield from faults
    for messages in questions if not faults else ():
        yield from _refused(tokenizer, messages, field, "the judge")
