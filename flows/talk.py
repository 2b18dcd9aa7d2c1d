"""``rlhf generate`` and ``rlhf chat``: a model version answers."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from alignment.faults import Fault, InputError
from alignment.loading import EMBEDDED_PREFIX, is_path
from alignment.models.base import own_place, prepare_base
from alignment.recipe import ModelSettings, Resources
from alignment.records import Message, Prompt, Sampling
from alignment.registry.files import ADAPTER_FILE
from alignment.workspace import Workspace
from flows.services import quiet_environment


def load_version(reference: str, workspace: Workspace) -> tuple[Any, Any]:
    """The model and tokenizer of a registered version (``policy@champion``, ``policy/3``) or of a model's folder."""
    quiet_environment(workspace)
    import torch
    from transformers import AutoModelForCausalLM

    from alignment.chat import load_tokenizer
    from alignment.models.precision import natural_precision

    folder = Path(reference)
    if not folder.is_dir():
        from alignment.registry import find

        folder = Path(find(workspace, reference).folder)
    merged = folder / "merged"
    source = merged if merged.is_dir() else folder
    adapter = (source / ADAPTER_FILE).exists()
    base = _base_of(source, workspace) if adapter else source
    try:
        model = AutoModelForCausalLM.from_pretrained(str(base), dtype=getattr(torch, natural_precision(Resources())))
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(source))
    except (OSError, ValueError) as error:
        problem = f"no model can be loaded from {source}: {str(error).splitlines()[0]}"
        remedy = "name a registered version or a Hugging Face folder"
        raise InputError([Fault(problem, remedy, field="MODEL")]) from error
    return model.eval(), load_tokenizer(folder)


def _base_of(adapter: Path, workspace: Workspace) -> str:
    """What an adapter applies to: one of ours, the very model that it was made on, wherever the workspace is now.

    Its ``adapter_config.json`` names a folder, which a copied workspace must not read. Raises InputError where the
    model is not to be had, or is no longer what the adapter was made on.
    """
    record = adapter / "base.json"
    if not record.exists():  # an adapter from elsewhere
        return str(json.loads((adapter / ADAPTER_FILE).read_text("utf-8"))["base_model_name_or_path"])
    made_on = json.loads(record.read_text("utf-8"))
    name = own_place(workspace, made_on["base"])
    if not name.startswith(EMBEDDED_PREFIX) and not is_path(name):
        return name  # a hub's name, which is the same everywhere
    base = prepare_base(workspace, ModelSettings(base=name))
    if base.digest != made_on["digest"]:
        problem = f"{adapter} was made on {made_on['base']} ({made_on['digest'][:12]}), which is now {base.digest[:12]}"
        raise InputError([Fault(problem, "bring the model back as it was", file=base.path)])
    return base.path


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
    from alignment.data.digests import prompt_id
    from alignment.data.prompts import read_prompts
    from alignment.models.loading import stop_ids
    from alignment.rollouts.stage import response_seed
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
    from alignment.models.loading import stop_ids
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
