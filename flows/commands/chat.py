"""``rlhf generate`` and ``rlhf chat``: a model version answers."""

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from alignment.errors import Fault, FaultCollector, InputError, raise_faults
from alignment.records import Message, Prompt, Sampling
from flows.console import PlainConsole, print_json, styled
from flows.failures import open_workspace
from flows.services.model_version import load_version
from flows.services.named_servers import require_registry
from flows.services.servers import quiet_environment


def generate_command(
    reference: str,
    prompts: list[str],
    file: Path | None,
    workspace: Path,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    *,
    as_json: bool,
) -> None:
    """Answers each prompt, a repeated one again; one JSON object a line with ``--json``."""
    space = open_workspace(workspace)
    quiet_environment(space)  # before transformers is imported
    require_registry(reference, space)
    from alignment.models.families import stop_ids
    from alignment.rollouts.seeds import response_seed
    from alignment.rollouts.transformers_engine import TransformersEngine

    asked = _asked(prompts, file)
    if not asked:
        raise InputError([Fault("nothing to answer", "give --prompt TEXT or --prompts FILE")])
    model, tokenizer = load_version(reference, space)
    rendered = _rendered(asked, model, tokenizer, max_new_tokens, None if file is None else str(file))
    engine = TransformersEngine(model, tokenizer, stop_ids=stop_ids(model, tokenizer))
    sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)
    before: Counter[str] = Counter()
    seeds = []
    for _row, prompt in asked:
        seeds.append(response_seed(seed, prompt.id, before[prompt.id]))
        before[prompt.id] += 1
    completions = engine.generate(rendered, sampling=sampling, seeds=seeds)
    console = PlainConsole()
    for (_row, prompt), (completion,) in zip(asked, completions, strict=True):
        if as_json:
            row = {"prompt": prompt.messages[-1].content, "response": completion.text, "finished": completion.finished}
            print_json(json.dumps(row, ensure_ascii=False))
        else:
            console.print(styled((prompt.messages[-1].content, "bold")))
            console.print(completion.text, "\n")


def _asked(prompts: list[str], file: Path | None) -> list[tuple[int, Prompt]]:
    """The prompts with their rows, in order; every row is answered, a repeated one too."""
    from alignment.data.jsonl import parse_rows
    from alignment.data.prompts import parse_prompt

    if file is not None:
        return parse_rows(file, parse_prompt)
    faults = FaultCollector()
    given = [faults.attempt(partial(parse_prompt, {"prompt": text}), None) for text in prompts]
    if faults.faults:
        raise InputError([replace(fault, field="--prompt") for fault in faults.faults])
    return [(row, prompt) for row, prompt in enumerate(given, start=1) if prompt is not None]


def _rendered(
    asked: list[tuple[int, Prompt]], model: Any, tokenizer: Any, new_tokens: int, file: str | None
) -> list[list[int]]:
    """The prompts' token ids. Raises InputError with every prompt that the model cannot be asked."""
    from alignment.chat import render_prompt
    from alignment.checks.rendering import conversation_problem

    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    ids: list[list[int]] = []
    faults: list[Fault] = []
    for row, prompt in asked:
        problem = conversation_problem(tokenizer, prompt.messages, answered=True)
        if problem is None:
            ids.append(render_prompt(tokenizer, prompt.messages))
            length = len(ids[-1])
            if room is not None and length + new_tokens > room:
                words = f"{length} tokens and {new_tokens} new ones are more than the model's {room} positions"
                problem = words, "shorten the prompt, or lower --max-new-tokens"
        if problem is not None:
            faults.append(Fault(*problem, file, row, field=None if file else "--prompt"))
    raise_faults(faults)
    return ids


def chat_command(reference: str, workspace: Path, temperature: float, max_new_tokens: int) -> None:
    """A conversation; an empty line or Ctrl-D ends it."""
    space = open_workspace(workspace)
    quiet_environment(space)
    require_registry(reference, space)
    from alignment.models.families import stop_ids
    from alignment.rollouts.transformers_engine import TransformersEngine

    console = PlainConsole()
    with console.status(styled(f"loading {reference}")):
        model, tokenizer = load_version(reference, space)
    engine = TransformersEngine(model, tokenizer, stop_ids=stop_ids(model, tokenizer))
    sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)
    console.print(f"{reference}: an empty line ends the conversation", style="dim")
    messages: list[Message] = []
    while True:
        try:
            text = console.input(styled(("you ", "bold cyan"))).strip()
        except EOFError:
            text = ""
        if not text:
            return
        turns = (*messages, Message(role="user", content=text))
        prompt = Prompt(id="chat", messages=turns)
        try:
            rendered = _rendered([(len(turns), prompt)], model, tokenizer, max_new_tokens, None)
        except InputError as error:  # the talk goes on as if this had not been said
            console.print(str(error), style="yellow")
            continue
        messages = list(turns)
        [[completion]] = engine.generate(rendered, sampling=sampling, seeds=[len(messages)])
        console.print(styled((f"{reference} ", "bold green"), completion.text))
        messages.append(Message(role="assistant", content=completion.text))
