"""Rewards that look at an answer's form: instructions that a program can check, and penalties."""

import json
import re
import unicodedata
from collections.abc import Callable

from alignment.data.text import repeated_share, sentences, whitespace_words
from alignment.recipe.rewards.form import (
    FormatReward,
    KeywordsReward,
    LanguageReward,
    LengthPenalty,
    LengthReward,
    RepetitionPenalty,
)
from alignment.reward.protocol import Reward, RewardInput
from alignment.reward.verifiable import each

_BULLET, _NUMBERED = re.compile(r"\s*[-*•]\s+\S"), re.compile(r"\s*\d+[.)]\s+\S")
_MARKDOWN = re.compile(r"^#{1,6}\s|^\s*[-*•]\s|```|\*\*|__|\[[^\]]*\]\(", re.MULTILINE)
_QUOTES = {('"', '"'), ("“", "”"), ("'", "'"), ("«", "»"), ("„", "“")}
_SCRIPTS = {  # how the names of a script's letters begin in Unicode
    "latin": "LATIN", "cyrillic": "CYRILLIC", "greek": "GREEK", "arabic": "ARABIC", "hebrew": "HEBREW",
    "devanagari": "DEVANAGARI", "cjk": "CJK", "hiragana": "HIRAGANA", "katakana": "KATAKANA", "hangul": "HANGUL",
}  # fmt: skip


def measured(answer: RewardInput, unit: str) -> int:
    """How long an answer is. A line break ends a sentence too; code has none, and empty lines do not count."""
    text = answer.text.strip()
    if unit == "tokens":
        return answer.tokens
    if unit == "words":
        return len(whitespace_words(text))
    if unit == "lines":
        return sum(bool(line.strip()) for line in text.splitlines())
    if unit == "sentences":
        return len(sentences(text))
    return len(text)


def length(settings: LengthReward) -> Reward:
    """See :class:`LengthReward`."""
    most = float("inf") if settings.at_most is None else settings.at_most
    return each(lambda answer: float(settings.at_least <= measured(answer, settings.unit) <= most))


def form(settings: FormatReward) -> Reward:
    """See :class:`FormatReward`."""
    return each(lambda answer: sum(has_form(answer.text, name) for name in settings.forms) / len(settings.forms))


def has_form(text: str, name: str) -> bool:
    """Whether a text has one of the forms of :class:`FormatReward`; an empty one has none."""
    text = text.strip()
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return False
    letters = [character for character in text if character.isalpha()]
    first = next((character for character in text if character.isalnum()), "")
    checks: dict[str, Callable[[], object]] = {
        "bullets": lambda: all(_BULLET.match(line) for line in lines),
        "numbered": lambda: all(_NUMBERED.match(line) for line in lines),
        "json": lambda: _is_json(text),
        "one_paragraph": lambda: not re.search(r"\n\s*\n", text),
        "one_line": lambda: len(lines) == 1,
        "lowercase": lambda: not any(letter.isupper() for letter in letters),
        "uppercase": lambda: not any(letter.islower() for letter in letters),
        "capitalised": first.isupper,
        "no_comma": lambda: "," not in text,
        "quoted": lambda: len(text) > 1 and (text[0], text[-1]) in _QUOTES,
        "ends_with_full_stop": lambda: text.endswith("."),
        "ends_with_question_mark": lambda: text.endswith("?"),
        "no_markdown": lambda: not _MARKDOWN.search(text),
    }
    return bool(checks[name]())


def keywords(settings: KeywordsReward) -> Reward:
    """See :class:`KeywordsReward`."""

    def has(text: str, word: str) -> bool:
        return re.search(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE) is not None

    def score(answer: RewardInput) -> float:
        held = [has(answer.text, word) for word in settings.required]
        held += [not has(answer.text, word) for word in settings.forbidden]
        return sum(held) / len(held)

    return each(score)


def language(settings: LanguageReward) -> Reward:
    """See :class:`LanguageReward`; an answer without letters is in no script."""
    prefix = _SCRIPTS[settings.script]

    def score(answer: RewardInput) -> float:
        letters = [character for character in answer.text if character.isalpha()]
        inside = sum(unicodedata.name(letter, "").startswith(prefix) for letter in letters)
        return inside / len(letters) if letters else 0.0

    return each(score)


def length_penalty(settings: LengthPenalty) -> Reward:
    """See :class:`LengthPenalty`."""

    def score(answer: RewardInput) -> float:
        over = (measured(answer, settings.unit) - settings.free) / (settings.full - settings.free)
        return -min(max(over, 0.0), 1.0)

    return each(score)


def repetition_penalty(settings: RepetitionPenalty) -> Reward:
    """See :class:`RepetitionPenalty`; an answer shorter than one n-gram repeats nothing."""

    def score(answer: RewardInput) -> float:
        return -(repeated_share(answer.text, settings.ngram) or 0.0)

    return each(score)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
