"""The closed set of measures that a rubric's criteria are made of.

Each is a settings class with a tag, and a ``value(prompt, response) -> float`` between 0 and 1. They look at the text
alone, so they cost nothing and never change; what they cannot see (truth without a reference, tone, taste) is said in
the measure's docstring. Where a measure has two bounds, the value falls linearly between them.
"""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from alignment.data import text as texts
from alignment.records import Prompt, Response

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
NEGATIONS = frozenset({"not", "never", "no", "isn't", "neither", "nor"})


class RubricCriterion(BaseModel):
    """What every criterion has. A ``required`` one scales the whole score; the others add up by ``weight``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
    text: Annotated[str, Field(min_length=1)]  # the criterion as a person reads it
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    required: bool = False
    when: Literal["always", "reference", "no_reference"] = "always"
    kinds: tuple[str, ...] = ()  # of prompts; empty: all

    def applies(self, prompt: Prompt) -> bool:
        """Whether this criterion says anything about answers to ``prompt``."""
        if self.kinds and prompt.kind not in self.kinds:
            return False
        return self.when == "always" or (self.when == "reference") == (prompt.reference is not None)

    @model_validator(mode="after")
    def _counts(self) -> "RubricCriterion":
        if self.weight == 0 and not self.required:
            raise ValueError("a criterion needs a weight above 0, or `required: true`")
        return self


class ReferenceAnswer(RubricCriterion):
    """The short reference answer is given.

    A number must be the first or the last that the answer names (elsewhere it earns a quarter: lists of guesses should
    not pay). A word must be there and not denied, and where the prompt offers choices, no other choice before it;
    naming another one after it halves the value. Code must be there up to spaces, quotes and case. A part of a
    longer reference earns up to a half.
    """

    measure: Literal["answer"]
    when: Literal["reference"] = "reference"

    def value(self, prompt: Prompt, response: Response) -> float:
        return short_answer(question(prompt), prompt.reference or "", response.text)


class Translation(RubricCriterion):
    """Likeness to the reference translation: sentence chrF (Popović 2015), as a share.

    The likest of the whole answer, its sentences and what it puts in quotation marks counts, so that saying more than
    the translation is the business of the criteria on length.
    """

    measure: Literal["translation"]
    when: Literal["reference"] = "reference"
    zero_similarity: Fraction
    full_similarity: Fraction

    def value(self, prompt: Prompt, response: Response) -> float:
        from sacrebleu.metrics import CHRF

        metric = CHRF(lowercase=True)
        quoted = re.findall(r"[\"“«](.+?)[\"”»]", response.text)
        parts = [response.text, *texts.sentences(response.text), *quoted]
        likeness = max(float(metric.sentence_score(part, [prompt.reference or ""]).score) for part in parts)
        return ramp(likeness / 100, zero=self.zero_similarity, full=self.full_similarity)


class Topic(RubricCriterion):
    """Shares ``needed`` subjects with the prompt or the reference; ``floor`` is the value of sharing none.

    The floor is there because a good answer may use other words than the question does. It sees words, not sense.
    """

    measure: Literal["topic"]
    needed: Count
    floor: Fraction = 0.0

    def value(self, prompt: Prompt, response: Response) -> float:
        asked = texts.subjects(f"{question(prompt)} {prompt.reference or ''}")
        if not asked:
            return 1.0
        shared = len(asked & texts.subjects(response.text))
        share = min(1.0, shared / min(self.needed, len(asked)))
        if not share and prompt.reference is not None:
            share = short_answer(question(prompt), prompt.reference, response.text)  # "eight" for 8, "#", "ls" …
        return self.floor + (1 - self.floor) * share if texts.words(response.text) else share


class Substance(RubricCriterion):
    """Has ``min_words`` different words, or different words that the prompt lacks; a right short answer has enough."""

    measure: Literal["substance"]
    min_words: Count
    count: Literal["words", "new_words"]

    def value(self, prompt: Prompt, response: Response) -> float:
        if prompt.reference is not None and short_answer(question(prompt), prompt.reference, response.text) == 1:
            return 1.0
        said = set(texts.words(response.text))
        if self.count == "new_words":
            said -= set(texts.words(question(prompt)))
        return min(1.0, len(said) / self.min_words)


class Echo(RubricCriterion):
    """The longest run of words taken from the prompt, as a Dice overlap of the two: 1 is the prompt handed back."""

    measure: Literal["echo"]
    full_overlap: Fraction
    zero_overlap: Fraction

    def value(self, prompt: Prompt, response: Response) -> float:
        said, asked = texts.words(response.text), texts.words(question(prompt))
        overlap = 2 * texts.copied_run(said, asked) / max(1, len(said) + len(asked))
        return ramp(overlap, zero=self.zero_overlap, full=self.full_overlap)


class Copying(RubricCriterion):
    """The share of the answer's n-grams that stand in the prompt word for word."""

    measure: Literal["copying"]
    ngram: Count
    full_share: Fraction
    zero_share: Fraction

    def value(self, prompt: Prompt, response: Response) -> float:
        said = texts.ngrams(response.text, self.ngram)
        asked = set(texts.ngrams(question(prompt), self.ngram))
        share = sum(ngram in asked for ngram in said) / max(1, len(said))
        return ramp(share, zero=self.zero_share, full=self.full_share)


class Repetition(RubricCriterion):
    """The share of the answer's n-grams that have been said before in it."""

    measure: Literal["repetition"]
    ngram: Count
    full_share: Fraction
    zero_share: Fraction

    def value(self, prompt: Prompt, response: Response) -> float:
        said = texts.ngrams(response.text, self.ngram)
        share = 1 - len(set(said)) / len(said) if said else 0.0
        return ramp(share, zero=self.zero_share, full=self.full_share)


class Sentences(RubricCriterion):
    """Number of sentences outside code."""

    measure: Literal["sentences"]
    full_at_most: Count
    zero_at: Count

    def value(self, prompt: Prompt, response: Response) -> float:
        return ramp(len(texts.sentences(response.text)), zero=self.zero_at, full=self.full_at_most)


class Words(RubricCriterion):
    """Number of words, code included: a single endless sentence is not short."""

    measure: Literal["words"]
    full_at_most: Count
    zero_at: Count

    def value(self, prompt: Prompt, response: Response) -> float:
        return ramp(len(texts.words(response.text)), zero=self.zero_at, full=self.full_at_most)


class Direct(RubricCriterion):
    """No preamble at the start, no filler phrase anywhere, no long stretch of the question in the first sentence."""

    measure: Literal["direct"]
    openings: tuple[str, ...]
    phrases: tuple[str, ...] = ()
    max_copied_words: Count

    def value(self, prompt: Prompt, response: Response) -> float:
        said = response.text.strip().lower().replace("’", "'")
        opened = any(re.match(re.escape(opening) + r"(?!\w)", said) for opening in self.openings)
        filler = any(re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", said) for phrase in self.phrases)
        first = texts.words(next(iter(texts.sentences(said)), ""))
        parroted = texts.copied_run(first, texts.words(question(prompt))) > self.max_copied_words
        return 0.0 if opened or filler or parroted else 1.0


class Plain(RubricCriterion):
    """The share of words (outside code) with ``long_word`` letters or more; Markdown structure halves the value."""

    measure: Literal["plain"]
    long_word: Count
    full_share: Fraction
    zero_share: Fraction

    def value(self, prompt: Prompt, response: Response) -> float:
        said = texts.words(texts.prose(response.text))
        share = sum(len(word) >= self.long_word for word in said) / max(1, len(said))
        value = ramp(share, zero=self.zero_share, full=self.full_share)
        return value / 2 if texts.has_markup(response.text) else value


class Finished(RubricCriterion):
    """Not cut off, and closed by punctuation; a title or label of fewer than ``unpunctuated_words`` needs none."""

    measure: Literal["finished"]
    unpunctuated_words: Count

    def value(self, prompt: Prompt, response: Response) -> float:
        said = response.text.strip()
        closed = bool(re.search(r"[.!?…`;)\]}>\"'”’»]$", said))
        return float(response.finished and (closed or len(texts.words(said)) < self.unpunctuated_words))


def ramp(number: float, *, zero: float, full: float) -> float:
    """1 at ``full`` and beyond, 0 at ``zero`` and beyond, linear between; ``zero`` may lie on either side."""
    if zero == full:
        return float(number <= full)
    return min(1.0, max(0.0, (number - zero) / (full - zero)))


def question(prompt: Prompt) -> str:
    """What was asked: the last message."""
    return prompt.messages[-1].content


def short_answer(asked: str, reference: str, text: str) -> float:
    """How far ``text`` gives the short ``reference``, from 0 to 1. See :class:`ReferenceAnswer` for the rules."""
    reference = reference.strip().rstrip(".")
    if re.fullmatch(r"-?\d+(\.\d+)?", reference):
        return _number(float(reference), texts.numbers(text))
    if re.search(r"[^\w\s'’-]", reference):
        return _code(reference, text)
    wanted, said = [_singular(w) for w in texts.words(reference)], [_singular(w) for w in texts.words(text)]
    if not wanted:
        return float(bool(reference) and reference in text)
    starts = [i for i in range(len(said)) if said[i : i + len(wanted)] == wanted]
    stated = [i for i in starts if not NEGATIONS & set(said[max(0, i - 2) : i])]
    if not stated:
        share = len(set(wanted) & set(said)) / len(wanted)
        return share / 2 if not starts and len(wanted) > 1 else 0.0
    choices = next((found for found in texts.options(asked) if reference.lower() in found), set())
    rivals = {_singular(choice) for choice in choices} - set(wanted)
    places = [i for i, word in enumerate(said) if word in rivals]
    if not places:
        return 1.0
    return 0.5 if stated[0] < places[0] else 0.0


def _number(wanted: float, said: list[float]) -> float:
    if not said:
        return 0.0
    if wanted in (said[0], said[-1]):
        return 1.0
    return 0.25 if wanted in said else 0.0


def _code(reference: str, text: str) -> float:
    wanted, said = (re.sub(r"\s+", "", part.replace("'", '"').lower()) for part in (reference, text))
    if wanted.rstrip(";") in said:
        return 1.0
    tokens = set(re.findall(r"\w+|[^\w\s]", reference.lower().replace("'", '"')))
    found = set(re.findall(r"\w+|[^\w\s]", text.lower().replace("'", '"')))
    names = {token for token in tokens if token[0].isalnum()}
    return len(tokens & found) / len(tokens) / 2 if names & found else 0.0


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") else word
