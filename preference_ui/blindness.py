"""Answers that say who wrote them. A rater who reads "I'm …" is no longer blind, so such answers are marked.

It leaves out styles of writing that give a model away: no list of words can catch those.
"""

import re

_MAKER = r"(?:open\s?ai|anthropic|google|deepmind|meta(?: ai)?|mistral(?: ai)?|alibaba(?: cloud)?|deepseek|hugging\s?face|microsoft|x\.?ai)"
_NAME = (
    r"(?:chat\s?gpt|gpt-?\s?\d[\w.-]*|claude|gemini|bard|llama(?:[ -]?\d[\w.]*)?|mistral|mixtral|qwen\d*|deepseek|"
    r"smol\s?lm\d*|gemma|phi-\d|copilot|grok|command r|falcon|vicuna|alpaca|zephyr|olmo)"
)
_SELF = r"\b(?:i\s+am|i['’]m|my\s+name\s+is|this\s+is|call\s+me|as)\s+"
_FILLER = r"(?:\w+[ ,]+){0,4}?"
_PATTERNS = [
    re.compile(_SELF + _FILLER + _NAME + r"\b", re.IGNORECASE),
    re.compile(r"\b(?:i\s+was|i['’]ve\s+been|i\s+am|i['’]m|model|assistant|made)\s+" + _FILLER
               + r"(?:trained|made|built|created|developed|designed)\s+(?:and\s+\w+\s+)?(?:by|at)\s+" + _MAKER, re.IGNORECASE),
    re.compile(r"\b(?:trained|made|built|created|developed)\s+(?:and\s+\w+\s+)?by\s+" + _MAKER, re.IGNORECASE),
]  # fmt: skip


def names_itself(text: str) -> bool:
    """Whether an answer seems to say which model wrote it, or whose model it is."""
    return any(pattern.search(text) for pattern in _PATTERNS)
