"""Which token ends an assistant's turn: the tokenizer's EOS in most families, and in some another.

Gemma's template ends a turn with ``<end_of_turn>`` while its tokenizer names ``<eos>``; Phi-3's writes ``<|end|>``
after each turn and its tokenizer's EOS once, at the very end; GLM-4's writes nothing, and the model ends by beginning
the user's next turn, as its generation settings say. A model has to learn the token that it is to stop at, and sampling
has to stop there. So the tokenizer is given that token as its EOS, once, where it is loaded, and saved with it.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FIRST, SAID, NEXT = "one", "two", "three"


def adopt_turn_end(tokenizer: Any, folder: Path, pattern: re.Pattern[str] | None) -> None:
    """Makes the token that ends an assistant's turn the tokenizer's EOS; leaves it where none is found.

    ``pattern`` finds control tokens in a text, and ``folder`` holds the model's generation settings, if any.
    """
    if tokenizer.eos_token is None or not tokenizer.chat_template or pattern is None:
        return
    end = turn_end(tokenizer, pattern, generation_ends(tokenizer, folder))
    if end is not None and end != tokenizer.eos_token:
        tokenizer.eos_token = end


def turn_end(tokenizer: Any, pattern: re.Pattern[str], more: Sequence[str] = ()) -> str | None:
    """The token that ends an assistant's turn, by what the template writes after it; None where nothing tells.

    It is the EOS where that stands after every turn; else the first control token that does; else the EOS where it
    stands after the last turn alone; else the token of the next turn's beginning, where it is EOS or one of ``more``.
    """
    eos = str(tokenizer.eos_token)
    last = _after_last(tokenizer)
    between = text_between_turns(tokenizer)
    if last is None:
        return None
    ends = pattern.findall(last)
    inner = None if between is None else pattern.findall(between)
    if inner is None:
        return eos if eos in ends else None
    common = [token for token in ends if token in inner]
    if eos in common:
        return eos
    if common:
        return str(common[0])
    if eos in ends:
        return eos
    if not ends and inner[:1] and inner[0] in (eos, *more):
        return str(inner[0])
    return None


def generation_ends(tokenizer: Any, folder: Path) -> list[str]:
    """The tokens at which a model's own generation settings stop."""
    try:
        ends = json.loads((folder / "generation_config.json").read_text("utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        return []
    return [str(tokenizer.convert_ids_to_tokens(end)) for end in (ends if isinstance(ends, list) else [ends]) if end]


def _after_last(tokenizer: Any) -> str | None:
    text = _rendered(tokenizer, FIRST, SAID)
    return None if text is None or SAID not in text else text[text.rindex(SAID) + len(SAID) :]


def text_between_turns(tokenizer: Any) -> str | None:
    """What the template writes between an assistant's words and a user's after them; None where it cannot be told."""
    text = _rendered(tokenizer, FIRST, SAID, NEXT)
    if text is None or SAID not in text or NEXT not in text:
        return None
    begin, end = text.rindex(SAID) + len(SAID), text.rindex(NEXT)
    return text[begin:end] if begin <= end else None


def _rendered(tokenizer: Any, *texts: str) -> str | None:
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # a template may raise anything; what is wrong with it is told elsewhere
        return None
