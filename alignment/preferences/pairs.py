"""The pairs of a stage of preferences, and those of them that whatever trains on them is measured on."""

from pathlib import Path

from alignment.data.jsonl import read_records
from alignment.data.split import opening, split_both_sides
from alignment.records import PreferencePair
from alignment.stage import StageContext


def split_pairs(preferences: str, context: StageContext) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Training and held-out pairs: a file's own held-out part, else a split by the prompt's digest.

    The same for a reward model and a pair classifier, so that both are measured on what neither saw.
    """
    folder = Path(context.inputs[preferences].path)
    pairs = read_records(folder / "pairs.jsonl", PreferencePair)
    if (folder / "held_out.jsonl").exists():
        return pairs, read_records(folder / "held_out.jsonl", PreferencePair)
    return split_both_sides(pairs, context.run.held_out, key=_split_key)


def _split_key(pair: PreferencePair) -> str:
    """Salted: the pairs come from one side of the prompts' own split, and would all fall on one side of it again."""
    return f"reward\0{opening(pair)}"
