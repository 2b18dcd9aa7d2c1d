"""``rlhf generate`` and ``rlhf chat``: a model version answers."""

import json
from pathlib import Path

from rich.console import Console

from alignment.errors import Fault, InputError
from alignment.records import Message, Prompt, Sampling
from alignment.workspace import Workspace
from flows.services.model_version import load_version


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
    """Answers each prompt once; one JSON object a line with ``--json``."""
    from alignment.chat import render_prompt
    from alignment.data.prompts import read_prompts
    from alignment.digests import prompt_id
    from alignment.models.load import stop_ids
    from alignment.rollouts.seeds import response_seed
    from alignment.rollouts.transformers_engine import TransformersEngine

    turns = [(Message(role="user", content=text),) for text in prompts]
    given = [Prompt(id=prompt_id(messages), messages=messages) for messages in turns]
    asked = read_prompts(file) if file is not None else given
    if not asked:
        raise InputError([Fault("nothing to answer", "give --prompt TEXT or --prompts FILE")])
    model, tokenizer = load_version(reference, Workspace(workspace))
    engine = TransformersEngine(model, tokenizer, stop_ids=stop_ids(model, tokenizer))
    sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)
    completions = engine.generate(
        [render_prompt(tokenizer, prompt.messages) for prompt in asked],
        sampling=sampling,
        seeds=[response_seed(seed, prompt.id, 0) for prompt in asked],
    )
    console = Console()
    for prompt, (completion,) in zip(asked, completions, strict=True):
        if as_json:
            row = {"prompt": prompt.messages[-1].content, "response": completion.text, "finished": completion.finished}
            print(json.dumps(row, ensure_ascii=False))
        else:
            console.print(f"[bold]{prompt.messages[-1].content}[/bold]", highlight=False)
            console.print(completion.text, "\n", markup=False, highlight=False)


def chat_command(reference: str, workspace: Path, temperature: float, max_new_tokens: int) -> None:
    """A conversation; an empty line or Ctrl-D ends it."""
    from alignment.chat import render_prompt
    from alignment.models.load import stop_ids
    from alignment.rollouts.transformers_engine import TransformersEngine

    console = Console()
    with console.status(f"loading {reference}"):
        model, tokenizer = load_version(reference, Workspace(workspace))
    engine = TransformersEngine(model, tokenizer, stop_ids=stop_ids(model, tokenizer))
    sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)
    console.print(f"{reference}: an empty line ends the conversation", style="dim")
    messages: list[Message] = []
    while True:
        try:
            text = console.input("[bold cyan]you[/bold cyan] ").strip()
        except EOFError:
            text = ""
        if not text:
            return
        messages.append(Message(role="user", content=text))
        [[completion]] = engine.generate([render_prompt(tokenizer, messages)], sampling=sampling, seeds=[len(messages)])
        console.print(f"[bold green]{reference}[/bold green] ", end="")
        console.print(completion.text, markup=False, highlight=False)
        messages.append(Message(role="assistant", content=completion.text))
