"""Answers that say who wrote them. A rater who reads "I'm …" is no longer blind, so such answers are marked.

It leaves out styles of writing that give a model away: no list of words can catch those.
"""

import re

_MAKERS = (
    "open ?ai", "anthropic", "google", "deepmind", "meta(?: ai)?", "mistral(?: ai)?", "alibaba(?: cloud)?", "deepseek",
    "hugging ?face", "microsoft", "x\\.?ai",
)  # fmt: skip
_NAMES = (
    "chat ?gpt", "gpt-? ?\\d[\\w.-]*", "claude", "gemini", "bard", "llama(?:[ -]?\\d[\\w.]*)?", "mistral", "mixtral",
    "qwen\\d*", "deepseek", "smol ?lm\\d*", "gemma", "phi-\\d", "copilot", "grok", "falcon", "vicuna", "alpaca",
    "zephyr", "olmo",
)  # fmt: skip
_FEW_WORDS = r"(?:\w+[ ,]+){0,4}?"
_I_AM = r"\b(?:i\s+am|i['’]m|my\s+name\s+is|this\s+is|call\s+me|as)\s+"
_MADE = r"\b(?:trained|made|built|created|developed|designed)\s+(?:and\s+\w+\s+)?(?:by|at)\s+"
_PATTERNS = [
    re.compile(f"{_I_AM}{_FEW_WORDS}(?:{'|'.join(_NAMES)})\\b", re.IGNORECASE),
    re.compile(f"{_MADE}(?:{'|'.join(_MAKERS)})\\b", re.IGNORECASE),
]
# One of these is in whatever the patterns match: to look for them takes a hundredth of the time.
_STEMS = (
    "openai", "open ai", "anthropic", "google", "deepmind", "meta", "mistral", "alibaba", "deepseek", "hugging",
    "microsoft", "xai", "x.ai", "gpt", "claude", "gemini", "bard", "llama", "mixtral", "qwen", "smol", "gemma", "phi-",
    "copilot", "grok", "falcon", "vicuna", "alpaca", "zephyr", "olmo",
)  # fmt: skip


def names_itself(text: str) -> bool:
    """Whether an answer seems to say which model wrote it, or whose model it is."""
    plain = text.lower()
    if plain.isascii() and not any(stem in plain for stem in _STEMS):  # other letters may match without looking alike
        return False
    return any(pattern.search(text) for pattern in _PATTERNS)
