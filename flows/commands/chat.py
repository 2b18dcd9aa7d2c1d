"""``rlhf generate`` and ``rlhf chat``: a model version answers."""

import json
import re
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.errors import Fault, FaultCollector, InputError, raise_faults
from alignment.records import Message, Prompt, Sampling
from flows.console import PlainConsole, print_json, styled
from flows.failures import open_workspace
from flows.services.named_servers import require_registry
from flows.services.servers import quiet_environment

if TYPE_CHECKING:
    from flows.services.conversation import Conversation
    from flows.services.speaker import Speaker

COMMAND = re.compile(r"/[a-z]+(\s|$)")  # and not a path, such as /etc/hosts
STYLES = ("bold green", "bold magenta")
HELP = """\
/system TEXT  a new conversation under this system message; without TEXT under none
/retry        the last answer once more, with another draw
/better 1|2   of two versions' answers: this one is better, and goes on for both (else the first does)
/save FILE    adds to a .jsonl file: the conversation as a demonstration, or of two versions the pairs
/stats        how much was read before, and how many proposed tokens were accepted
/help         this list
//…           says /… to the model"""


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
    draft: str | None = None,
    prompt_lookup: int | None = None,
) -> None:
    """Answers each prompt, a repeated one again; one JSON object a line with ``--json``."""
    space = open_workspace(workspace)
    quiet_environment(space)  # before transformers is imported
    for named in [reference, *([draft] if draft else [])]:
        require_registry(named, space)
    from alignment.rollouts.seeds import response_seed
    from flows.services.speaker import Drafting, load_speakers

    asked = _asked(prompts, file)
    if not asked:
        raise InputError([Fault("nothing to answer", "give --prompt TEXT or --prompts FILE")])
    drafting = Drafting(draft, prompt_lookup)
    sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)
    [speaker] = load_speakers([reference], space, sampling, drafting)
    rendered = _rendered(asked, speaker.model, speaker.tokenizer, max_new_tokens, None if file is None else str(file))
    before: Counter[str] = Counter()
    seeds = []
    for _row, prompt in asked:
        seeds.append(response_seed(seed, prompt.id, before[prompt.id]))
        before[prompt.id] += 1
    completions = speaker.complete(rendered, seeds)
    console = PlainConsole()
    for (_row, prompt), completion in zip(asked, completions, strict=True):
        if as_json:
            row = {"prompt": prompt.messages[-1].content, "response": completion.text, "finished": completion.finished}
            print_json(json.dumps(row, ensure_ascii=False))
        else:
            console.print(styled((prompt.messages[-1].content, "bold")))
            console.print(completion.text, "\n")
    if drafting:
        for line in speaker.statistics():
            PlainConsole(stderr=True).print(line, style="dim")


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
    asked: list[tuple[int, Prompt]],
    model: Any,
    tokenizer: Any,
    new_tokens: int,
    file: str | None,
    *,
    rewritten: bool = False,
) -> list[list[int]]:
    """The prompts' token ids. Raises InputError with every prompt that the model cannot be asked.

    ``rewritten``: the template may shorten the assistant's earlier turns, which are answers of a talk that goes on.
    """
    from alignment.chat import render_prompt
    from alignment.checks.rendering import conversation_problem

    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    ids: list[list[int]] = []
    faults: list[Fault] = []
    for row, prompt in asked:
        problem = conversation_problem(tokenizer, prompt.messages, answered=True, rewritten=rewritten)
        if problem is None:
            ids.append(render_prompt(tokenizer, prompt.messages))
            length = len(ids[-1])
            parted = model.config.is_encoder_decoder  # the prompt and the answer have positions of their own
            if room is not None and (max(length, new_tokens) if parted else length + new_tokens) > room:
                words = f"{length} tokens and {new_tokens} new ones are more than the model's {room} positions"
                problem = words, "shorten the prompt, or lower --max-new-tokens"
        if problem is not None:
            faults.append(Fault(*problem, file, row, field=None if file else "--prompt"))
    raise_faults(faults)
    return ids


def chat_command(
    references: list[str],
    workspace: Path,
    temperature: float,
    max_new_tokens: int,
    *,
    draft: str | None = None,
    prompt_lookup: int | None = None,
) -> None:
    """A conversation with one version or two; an empty line or Ctrl-D ends it."""
    space = open_workspace(workspace)
    quiet_environment(space)
    for reference in dict.fromkeys([*references, *([draft] if draft else [])]):
        require_registry(reference, space)
    if len(set(references)) < len(references):
        problem = f"{references[0]} is named twice, and would say the same twice"
        raise InputError([Fault(problem, "name two different versions, or one", field="MODEL")])
    from flows.services.model_version import require_decoder
    from flows.services.speaker import Drafting, load_speakers

    for reference in references:
        require_decoder(reference, space, "talked to: it answers single prompts")
    console = PlainConsole()
    sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)
    with console.status(styled(f"loading {' and '.join(references)}")):
        speakers = load_speakers(references, space, sampling, Drafting(draft, prompt_lookup))
    names = " and ".join(references)
    console.print(f"{names}: an empty line ends the conversation, /help lists what else there is", style="dim")
    talk = ChatSession(speakers, console)
    while True:
        try:
            text = console.input(styled(("you ", "bold cyan"))).strip()
        except EOFError:
            text = ""
        if not text:
            return
        try:
            talk.take(text)
        except InputError as error:  # the talk goes on as if this had not been said
            console.print(str(error), style="yellow")


class ChatSession:
    """What is typed, to one version or two: a turn of the conversation, or a command."""

    def __init__(self, speakers: Sequence["Speaker"], console: PlainConsole) -> None:
        from flows.services.conversation import Conversation

        self.speakers, self.console, self.conversation = speakers, console, Conversation()

    def take(self, text: str) -> None:
        """One line. Raises InputError, and nothing has changed, where it cannot be done."""
        if text.startswith("//") or COMMAND.match(text) is None:
            self._answer(self.conversation.asked(text.removeprefix("/") if text.startswith("//") else text))
            return
        command, _, rest = text.partition(" ")
        if command == "/retry" and not rest:
            self._answer(self.conversation.retried())
        elif command == "/system":
            self._system(rest.strip() or None)
        elif command == "/save" and rest:
            self._save(Path(rest.strip()).expanduser())
        elif command == "/better" and rest.strip() in ("1", "2"):
            self.conversation.prefer(int(rest))
            self._say(f"{self.speakers[int(rest) - 1].name}'s answer goes on; /save FILE keeps the pair")
        elif command in ("/stats", "/help") and not rest:
            self._stats() if command == "/stats" else self._say(HELP)
        else:
            remedy = "/help lists the commands; // at the beginning says a / to the model"
            raise InputError([Fault(f"{command} is no command here, or not so", remedy, field=command)])

    def _answer(self, conversation: "Conversation") -> None:
        from alignment.rollouts.seeds import derived_seed
        from flows.services.conversation import SpokenAnswer

        turns, messages = len(conversation.turns), conversation.messages()
        prompts = self._prompts(turns, messages)
        seed = derived_seed("retry", turns, conversation.attempt) if conversation.attempt else turns
        for place, (speaker, prompt) in enumerate(zip(self.speakers, prompts, strict=True)):
            self.console.print(styled((f"{speaker.name} ", STYLES[place])), end="")
            conversation.answers.append(SpokenAnswer(*self._streamed(speaker.stream(prompt, seed))))
        self.conversation = conversation

    def _prompts(self, turns: int, messages: tuple[Message, ...]) -> list[list[int]]:
        """The conversation's tokens for each version. Raises InputError where one cannot be asked."""
        asked = [(turns, Prompt(id="chat", messages=messages))]
        return [
            _rendered(asked, each.model, each.tokenizer, each.sampling.max_new_tokens, None, rewritten=True)[0]
            for each in self.speakers
        ]

    def _streamed(self, coming: Generator[str, None, bool]) -> tuple[str, bool]:
        """Shows an answer as it comes; its text, and whether it ended by itself."""
        text = shown = ""
        while True:
            try:
                text = next(coming)
            except StopIteration as end:
                finished = bool(end.value)
                break
            if text.startswith(shown):
                self.console.print(text.removeprefix(shown), end="")
                shown = text
        self.console.print("" if text == shown else f"\n{text}")  # a tokenizer wrote its beginning otherwise at last
        return text, finished

    def _system(self, text: str | None) -> None:
        conversation = self.conversation.begun_anew(text)
        self._prompts(1, conversation.asked("Hello!").messages())  # what a template refuses is said here
        self.conversation = conversation
        self._say("a new conversation" + ("" if text is None else " under this system message"))

    def _save(self, path: Path) -> None:
        pairs = len(self.speakers) == 2
        count = self.conversation.save(path, pairs=pairs)
        kind = "preference pair" if pairs else "demonstration"
        self._say(f"{path}: {count} new {kind}{'' if count == 1 else 's'}")

    def _stats(self) -> None:
        for speaker in self.speakers:
            for line in speaker.statistics() or ["nothing is kept between this model's turns"]:
                self._say(f"{speaker.name}: {line}")

    def _say(self, text: str) -> None:
        self.console.print(text, style="dim")
