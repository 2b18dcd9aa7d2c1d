"""A loaded version that answers one conversation after another, and reads no turn of it twice."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from alignment.errors import Fault, InputError, raise_faults
from alignment.records import Sampling
from alignment.workspace import Workspace
from flows.services.model_version import load_version, require_decoder, version_folder


@dataclass(frozen=True, slots=True)
class Drafting:
    """Where proposed tokens come from: a smaller version, or so many tokens at a time of what was said before."""

    draft: str | None = None
    prompt_lookup: int | None = None

    def __bool__(self) -> bool:
        return self.draft is not None or self.prompt_lookup is not None


class Speaker:
    """A version, with what it has read and what has proposed its tokens. ``name`` is how the user named it."""

    def __init__(self, name: str, model: Any, tokenizer: Any, sampling: Sampling) -> None:
        from alignment.rollouts.drafts import Drafter
        from alignment.rollouts.factory import local_engine
        from alignment.rollouts.prefix_cache import PrefixCache, keeps_prefixes

        self.name, self.model, self.tokenizer, self.sampling = name, model, tokenizer, sampling
        self.engine = local_engine(model, tokenizer, share_prefixes=True)
        self.cache = PrefixCache(self.engine) if keeps_prefixes(self.engine) else None
        self.drafter: Drafter | None = None

    def stream(self, prompt: Sequence[int], seed: int) -> Generator[str, None, bool]:
        """The text so far after every token; returns whether the answer ended by itself."""
        from alignment.rollouts.stream import stream

        return (
            yield from stream(
                self.engine, prompt, sampling=self.sampling, seed=seed, cache=self.cache, drafter=self.drafter
            )
        )

    def complete(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Any]:
        """The :class:`alignment.rollouts.engine.Completion` of each prompt: one after another where tokens are
        proposed, which is done for one row alone, else together."""
        from alignment.rollouts.stream import complete

        if self.drafter is None or self.cache is None:
            groups = self.engine.generate(prompts, sampling=self.sampling, seeds=seeds)
            return [completion for group in groups for completion in group]
        return [
            complete(self.cache, prompt, sampling=self.sampling, seed=seed, drafter=self.drafter)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def statistics(self) -> list[str]:
        """What was spared so far: a line about the prompts' tokens, and one about proposed ones where there are any."""
        lines = []
        if self.cache is not None:
            lines.append(f"{_share(self.cache.reused, self.cache.asked)} prompt tokens were read before")
        if self.drafter is not None:
            lines.append(f"{_share(self.drafter.accepted, self.drafter.proposed)} proposed tokens were accepted")
        return lines


def load_speakers(
    references: Sequence[str], workspace: Workspace, sampling: Sampling, drafting: Drafting
) -> list[Speaker]:
    """The versions that ``references`` name. Raises InputError where one cannot be loaded, or cannot be drafted for.

    Vocabularies are compared before any weights are loaded.
    """
    if drafting.draft is not None and drafting.prompt_lookup is not None:
        raise InputError([Fault("two sources of proposed tokens", "give --draft or --prompt-lookup", field="--draft")])
    for reference in references if drafting else ():
        require_decoder(reference, workspace, "proposed tokens")
    if drafting.draft is not None:
        require_decoder(drafting.draft, workspace, "asked for a draft", field="--draft")
        _require_vocabulary(references, drafting.draft, workspace)
    speakers = [Speaker(name, *load_version(name, workspace), sampling) for name in references]
    if drafting:
        raise_faults([_untakable(speaker.name, "MODEL") for speaker in speakers if speaker.cache is None])
        _give_drafters(speakers, workspace, drafting)
    return speakers


def _give_drafters(speakers: Sequence[Speaker], workspace: Workspace, drafting: Drafting) -> None:
    from alignment.rollouts.drafts import DraftModel, PromptLookup

    if drafting.prompt_lookup is not None:
        for speaker in speakers:
            speaker.drafter = PromptLookup(drafting.prompt_lookup)
    if drafting.draft is None:
        return
    draft = Speaker(drafting.draft, *load_version(drafting.draft, workspace), speakers[0].sampling)
    if draft.cache is None:
        raise InputError([_untakable(draft.name, "--draft")])
    for speaker in speakers:
        vocabulary = speaker.model.config.get_text_config().vocab_size
        speaker.drafter = DraftModel(draft.engine, speaker.sampling, vocabulary=vocabulary)


def _require_vocabulary(references: Sequence[str], draft: str, workspace: Workspace) -> None:
    """Raises InputError where a draft version has other tokens than a version that it is to propose for."""
    from alignment.chat import load_tokenizer

    proposed: dict[str, int] = load_tokenizer(version_folder(draft, workspace)).get_vocab()
    faults = []
    for reference in references:
        own: dict[str, int] = load_tokenizer(version_folder(reference, workspace)).get_vocab()
        if own != proposed:
            other = sum(proposed.get(token) != number for token, number in own.items())
            difference = f"{other} of {reference}'s {len(own)} tokens are others among its {len(proposed)}"
            remedy = "take a draft that was trained with the same tokenizer, or --prompt-lookup N"
            faults.append(Fault(f"{draft} has another vocabulary: {difference}", remedy, field="--draft"))
    raise_faults(faults)


def _untakable(name: str, field: str) -> Fault:
    problem = f"{name} keeps recurrent states or sliding windows, from which a refused token cannot be taken back"
    return Fault(problem, "leave out --draft and --prompt-lookup", field=field)


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,}" + (f" ({part / whole:.0%})" if whole else "")
