"""Registered versions as the arena's contestants: each loads when the app starts, and answers word by word."""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from alignment.chat import render_prompt
from alignment.durable_files import folder_digest
from alignment.errors import Fault, InputError
from alignment.models.families import stop_ids
from alignment.records import Message, Sampling
from alignment.registry import find
from alignment.rollouts.stream import stream
from alignment.rollouts.transformers_engine import TransformersEngine
from alignment.workspace import Workspace
from flows.services.model_version import load_version, require_decoder
from preference_ui.arena.talks import Contestant
from preference_ui.store.errors import Refusal

TOO_LONG = "This talk is longer than one of the two can read. Please vote, or begin a new one."


def contestants(references: Sequence[str], workspace: Workspace, sampling: Sampling) -> list[Contestant]:
    """The versions that ``references`` name, under the names that stand in votes: MODEL/NUMBER, or a folder's path.

    Raises InputError for a version that is not there, or where two references name the same one.
    """
    found = [_named(reference, workspace) for reference in references]
    if len({digest for _, digest, _ in found}) < len(found):
        remedy = "name two different versions; `rlhf models list` shows them"
        raise InputError([Fault(f"{' and '.join(references)} are the same version", remedy, field="--arena")])
    return [Contestant(name, digest, _speaker(str(folder), workspace, sampling)) for name, digest, folder in found]


def _named(reference: str, workspace: Workspace) -> tuple[str, str, Path]:
    folder = Path(reference)
    if folder.is_dir():
        return str(folder.resolve()), folder_digest(folder), folder
    version = find(workspace, reference)
    return f"{version.name}/{version.version}", version.candidate.digest, Path(version.folder)


def _speaker(
    reference: str, workspace: Workspace, sampling: Sampling
) -> Callable[[Sequence[Message], int], Generator[str, None, bool]]:
    require_decoder(reference, workspace, "talked to in the arena", field="--arena")
    model, tokenizer = load_version(reference, workspace)
    engine = TransformersEngine(model, tokenizer, stop_ids=stop_ids(model, tokenizer))
    room = getattr(model.config, "max_position_embeddings", None)

    def answer(messages: Sequence[Message], seed: int) -> Generator[str, None, bool]:
        prompt = render_prompt(tokenizer, messages)
        if room is not None and len(prompt) + sampling.max_new_tokens > room:
            raise Refusal("long", TOO_LONG)
        return (yield from stream(engine, prompt, sampling=sampling, seed=seed))

    return answer
