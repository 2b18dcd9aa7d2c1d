"""The prompts that evaluation asks: held out of everything that trains."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from alignment.data.preferences import load_preferences
from alignment.data.prompts import load_prompts
from alignment.records import PreferencePair, Prompt


def held_out_prompts(data: Mapping[str, Path], held_out: float) -> list[Prompt]:
    """The held-out share of the file "prompts" in ``data``, else of the prompts of the file "preferences".

    Raises InputError where the file is wrong, KeyError where ``data`` has neither.
    """
    if "prompts" in data:
        return load_prompts(data["prompts"], held_out)[1]
    _train, pairs, _skipped = load_preferences(data["preferences"], held_out)
    return pair_prompts(pairs)


def pair_prompts(pairs: Iterable[PreferencePair]) -> list[Prompt]:
    """The prompts of pairs, each once, in the order of their first pair."""
    prompts = {pair.prompt_id: Prompt(id=pair.prompt_id, messages=pair.prompt, kind=pair.kind) for pair in pairs}
    return list(prompts.values())
