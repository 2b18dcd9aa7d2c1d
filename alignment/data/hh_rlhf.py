r"""HH-RLHF dialogues (Bai et al. 2022): ``chosen`` and ``rejected`` as one text each, ``\n\nHuman: …\n\nAssistant: …``.

Turns of one speaker in a row (a few per mille of the corpus) are joined: chat templates want the speakers to alternate.
"""

import re
from itertools import groupby

from alignment.data.columns import Messages, fail, text
from alignment.data.jsonl import Row
from alignment.data.pairing import Skip, compare
from alignment.records import Message, PreferencePair

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def is_dialogue(value: object) -> bool:
    """Whether a text begins as these dialogues do."""
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def parse(row: Row) -> list[PreferencePair | Skip]:
    """The pair of one row, or why it has none. Raises InputError where a column is no dialogue."""
    chosen, rejected = (turns(text(row, name), name) for name in ("chosen", "rejected"))
    return [compare(chosen, rejected)]


def turns(dialogue: str, field: str) -> Messages:
    """The dialogue's turns, outer white space removed."""
    before, *parts = _TURN.split(dialogue)
    if before.strip() or not parts:
        fail('not a dialogue of "Human:" and "Assistant:" turns', "begin with Human:, or set the format to trl", field)
    speakers = ["user" if speaker == "Human" else "assistant" for speaker in parts[::2]]
    said = zip(speakers, (part.strip() for part in parts[1::2]), strict=True)
    joined = tuple(
        Message.model_validate({"role": role, "content": "\n\n".join(content for _role, content in group)})
        for role, group in groupby(said, key=lambda turn: turn[0])
    )
    if joined[0].role != "user" or joined[-1].role != "assistant":
        fail("the dialogue does not go from Human: to Assistant:", "give whole dialogues, or remove the row", field)
    return joined
