"""What the rubric's measures see of a text: words, sentences, subjects, numbers, copied runs."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_INLINE_CODE = re.compile(r"`[^`\n]*`")
_ABBREVIATION = re.compile(r"\b(Mr|Mrs|Ms|Dr|Prof|St|vs|e\.g|i\.e|etc)\.", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’»)\]*_]*\s+|\n+")
_MARKUP = re.compile(r"^\s*(#{1,6}\s|[-*•]\s|\d+[.)]\s)|\*\*[^*\n]+\*\*|__[^_\n]+__", re.MULTILINE)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?")
_SMALL_NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_STEM = 5  # letters, after the ending is off: "costs" and "costly", "translate" and "translation" meet here
_ENDING = re.compile(r"(?<=\w{3})(?:ing|ers|er|ed|es|ly|s|e)$")

# Words that are in every text, and words in which tasks are given; neither says what a text is about.
_COMMON = """
a about all also am an and any are as at be because been but by can cannot could did do does for from get give had has
have he her here him his how i if in into is it its just like know made make makes many may me more most much must my no
not of on one only or our out over put say says shall she should so some than that the their them then there these they
this those to too up us use very was we were what when where which who why will with would you your
"""
_TASKS = """
correct describe email grammar line lines message poem politely rewrite sentence sentences short slogan story sum
summarise title two word words write
"""
_STOP_WORDS = frozenset(_WORD.findall(_COMMON + _TASKS))


def words(text: str) -> list[str]:
    """The words and numbers of a text in lower case; a possessive 's is dropped."""
    return [re.sub(r"['’]s$", "", word) for word in _WORD.findall(text.lower())]


def whitespace_words(text: str) -> list[str]:
    """A text split at white space, in lower case: the words of lengths, n-grams and repetition."""
    return text.lower().split()


def repeated_share(text: str, n: int) -> float | None:
    """The share of a text's word n-grams that already stood earlier in it; None where it has none.

    This is seq-rep-n of Welleck et al. (2020, section 6): 1 - different n-grams / n-grams. Raises ValueError for n < 1.
    """
    if n < 1:
        raise ValueError(f"n-grams have at least one word, not {n}")
    tokens = whitespace_words(text)
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def plain_answer(text: str) -> str:
    """A short answer without what does not count: case, white space, punctuation and emphasis at the ends."""
    return " ".join(text.split()).casefold().strip(" .,;:!?\"'`*")


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Every run of ``n`` words, in order; none where the text is shorter."""
    said = words(text)
    return [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]


def prose(text: str) -> str:
    """The text without its code: what a reader reads rather than types."""
    return _INLINE_CODE.sub(" ", _FENCE.sub("\n", text))


def sentences(text: str) -> list[str]:
    """The sentences of a text's prose. A line break ends a sentence, so a list has as many as it has items."""
    plain = _ABBREVIATION.sub(r"\1", prose(text))
    return [part for part in _SENTENCE_END.split(plain) if _WORD.search(part)]


def has_markup(text: str) -> bool:
    """Whether the prose has Markdown headings, list items or bold type."""
    return bool(_MARKUP.search(prose(text)))


def subjects(text: str) -> set[str]:
    """Stems of the words that say what a text is about: content words and numbers."""
    return {
        _ENDING.sub("", word)[:_STEM]
        for word in words(text)
        if word not in _STOP_WORDS and (len(word) > 2 or word.isdigit())
    }


def numbers(text: str) -> list[float]:
    """The numbers of a text in their order; small ones and tens may be spelled out."""
    spelled = {word: str(value) for value, word in enumerate(_SMALL_NUMBERS)}
    spelled |= {word: str(10 * value) for value, word in enumerate(_TENS, start=2)}
    pattern = re.compile(rf"\b({'|'.join(_TENS)})[- ]({'|'.join(_SMALL_NUMBERS[1:10])})\b", re.IGNORECASE)
    text = pattern.sub(lambda m: str(int(spelled[m[1].lower()]) + int(spelled[m[2].lower()])), text)
    text = re.sub(r"[A-Za-z]+", lambda m: spelled.get(m[0].lower(), m[0]), text)
    return [float(number.replace(",", "")) for number in _NUMBER.findall(text)]


def copied_run(text: Sequence[str], source: Sequence[str]) -> int:
    """Length of the longest run of words that stands in both, word for word."""
    matcher = SequenceMatcher(a=text, b=source, autojunk=False)
    return matcher.find_longest_match().size


def options(prompt: str) -> list[set[str]]:
    """The choices that a prompt offers: "Is it good, bad or neither?" → ``[{"good", "bad", "neither"}]``."""
    bare = re.sub(r"\b(?:an?|the)\s+", "", prompt.lower())
    found = re.findall(r"(?:[\w-]+, )*[\w-]+,? or [\w-]+", bare)
    return [set(re.split(r",? or |, ", choices)) for choices in found]
