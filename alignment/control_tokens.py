"""Control tokens in somebody's text: tokenised as the letters that they are written with.

A text that holds one (an answer, a judge's words, what somebody typed) ends no turn and begins none: the template alone
writes them. They are put under a cover while the template is at work, and uncovered as letters.
"""

import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from alignment.records import Message

COVERS = range(0xE000, 0xF900)  # Unicode's private use
_PATTERNS: WeakKeyDictionary[PreTrainedTokenizerBase, re.Pattern[str] | None] = WeakKeyDictionary()


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> list[int]:
    """The token ids of a text as it stands."""
    # Not verbose: texts longer than the model's context are told by the checks, each with its row.
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"]
    return ids


def control_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """What finds the tokenizer's control tokens in a text; None where it has none."""
    if tokenizer not in _PATTERNS:
        added = tokenizer.added_tokens_decoder.values()
        tokens = {str(token.content) for token in added if token.special} | set(map(str, tokenizer.all_special_tokens))
        longest_first = sorted(filter(str.strip, tokens), key=len, reverse=True)
        _PATTERNS[tokenizer] = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
    return _PATTERNS[tokenizer]


def forget_pattern(tokenizer: PreTrainedTokenizerBase) -> None:
    """For a tokenizer whose tokens were changed."""
    _PATTERNS.pop(tokenizer, None)


def cover(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[Sequence[Message], dict[str, str]]:
    """The messages with each control token in their texts under a cover, and what is under each cover.

    A cover is a character of Unicode's private use that stands in none of the texts. Few texts hold any.
    """
    pattern = control_pattern(tokenizer)
    found = {match for message in messages for match in (pattern.findall(message.content) if pattern else ())}
    if pattern is None or not found:
        return messages, {}
    whole = "".join(message.content for message in messages)
    covers = (chr(code) for code in COVERS if chr(code) not in whole)
    written = dict(zip(covers, sorted(found), strict=False))
    cover_of = {token: cover for cover, token in written.items()}
    covered = [
        message.model_copy(update={"content": pattern.sub(lambda match: cover_of[match[0]], message.content)})
        for message in messages
    ]
    return covered, written


def uncovered_ids(tokenizer: PreTrainedTokenizerBase, text: str, written: dict[str, str]) -> list[int]:
    """Token ids of a rendered text, in which what was under a cover is letters."""
    ids: list[int] = []
    for part in re.split(f"([{''.join(written)}])", text):
        if part:
            ids += _inner_tokens(tokenizer, written.get(part, part), literal=part in written, first=not ids)
    return ids


def _inner_tokens(tokenizer: PreTrainedTokenizerBase, text: str, *, literal: bool, first: bool) -> list[int]:
    """Token ids of a part of a text. Behind a line break, where it is not the ``first``: some tokenizers put a blank
    before all that they are given."""
    options = {"split_special_tokens": True} if literal else {}
    if literal and tokenizer.convert_tokens_to_ids(text) in token_ids(tokenizer, text, **options):
        # A unigram model (T5) holds the token among its pieces, and puts the letters together to it.
        letters = [_inner_tokens(tokenizer, letter, literal=False, first=first and not at)
                   for at, letter in enumerate(text)]  # fmt: skip
        return [token for ids in letters for token in ids]
    if not first:
        line, whole = token_ids(tokenizer, "\n"), token_ids(tokenizer, f"\n{text}", **options)
        if whole[: len(line)] == line:
            return whole[len(line) :]
    return token_ids(tokenizer, text, **options)
