"""Rewards that look at an answer's form, on values worked out by hand."""

import pytest

from alignment.recipe.rewards.form import (
    FormatReward,
    KeywordsReward,
    LanguageReward,
    LengthPenalty,
    LengthReward,
    RepetitionPenalty,
)
from alignment.records import Message, Prompt
from alignment.reward.protocol import RewardInput
from alignment.reward.rules import (
    form,
    has_form,
    keywords,
    language,
    length,
    length_penalty,
    measured,
    repetition_penalty,
)


def answer(text, tokens=7):
    return RewardInput(Prompt(id="1", messages=(Message(role="user", content="Well?"),)), text, tokens)


def score(reward, *texts):
    return list(reward([answer(text) for text in texts]))


TEXT = "One two. Is it 3.5? \n\nYes!"


@pytest.mark.parametrize(
    ("unit", "wanted"), [("words", 6), ("sentences", 3), ("lines", 2), ("characters", 26), ("tokens", 7)]
)
def test_units(unit, wanted):
    assert measured(answer(TEXT), unit) == wanted
    assert measured(answer("", 0), unit) == 0


def test_length_between_bounds():
    assert score(length(LengthReward(kind="length", at_least=2, at_most=3)), "a", "a b", "a b c", "a b c d") == [
        0,
        1,
        1,
        0,
    ]
    assert score(length(LengthReward(kind="length", unit="sentences", at_least=2)), "One.", "One. Two.") == [0, 1]


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("bullets", "- a\n\n* b", "- a\nb"),
        ("numbered", "1. a\n2) b", "1. a\n- b"),
        ("json", '{"a": 1}', "{a: 1}"),
        ("one_paragraph", "a\nb", "a\n\nb"),
        ("one_line", " a ", "a\nb"),
        ("lowercase", "abc 1", "Abc"),
        ("uppercase", "ABC 1", "ABc"),
        ("capitalised", '"Abc', "abc"),
        ("no_comma", "a; b", "a, b"),
        ("quoted", '"a"', '"a'),
        ("ends_with_full_stop", "a. ", "a"),
        ("ends_with_question_mark", "a?", "a."),
        ("no_markdown", "2 * 3 is - in short - six", "**six**"),
    ],
)
def test_forms(name, good, bad):
    assert has_form(good, name)
    assert not has_form(bad, name)
    assert not has_form("", name)


def test_format_is_the_share_of_the_forms():
    reward = form(FormatReward(kind="format", forms=("lowercase", "no_comma", "one_line", "quoted")))
    assert score(reward, "abc", "a, b", "A,\nb") == [0.75, 0.5, 0.0]


def test_keywords_are_whole_words():
    reward = keywords(KeywordsReward(kind="keywords", required=("cat", "New York"), forbidden=("dog",)))
    assert score(reward, "The Cat in new york", "Concatenate", "cat dog") == [1, 1 / 3, 1 / 3]


def test_language_is_the_share_of_letters():
    reward = language(LanguageReward(kind="language", script="cyrillic"))
    assert score(reward, "да 12!", "да no", "no", "12") == [1, 0.5, 0, 0]
    assert score(language(LanguageReward(kind="language", script="cjk")), "你好") == [1]


def test_the_length_penalty_falls_in_a_line():
    reward = length_penalty(LengthPenalty(kind="length_penalty", free=2, full=6))
    assert score(reward, "a b", "a b c", "a b c d", "a b c d e f", "a b c d e f g") == [0, -0.25, -0.5, -1, -1]


def test_the_length_penalty_in_tokens_is_dapos_soft_overlong_punishment():
    """Yu et al. 2025, eq. 13, with L_max = 20 and L_cache = 5: 0 up to 15 tokens, (15 - |y|) / 5 up to 20, then -1."""
    reward = length_penalty(LengthPenalty(kind="length_penalty", unit="tokens", free=15, full=20))
    lengths = {0: 0.0, 15: 0.0, 16: -0.2, 17: -0.4, 18: -0.6, 19: -0.8, 20: -1.0, 21: -1.0, 500: -1.0}
    answers = [answer("any text", tokens) for tokens in lengths]
    assert reward(answers) == pytest.approx(list(lengths.values()))


def test_the_repetition_penalty_is_the_share_of_repeated_ngrams():
    """ "a b a b a": bigrams ab ba ab ba, of which two stood before."""
    reward = repetition_penalty(RepetitionPenalty(kind="repetition_penalty", ngram=2))
    assert score(reward, "a b a b a", "a b c d", "a", "A a a") == [-0.5, 0, 0, -0.5]


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        (LengthReward, {"kind": "length", "at_least": 3, "at_most": 2}),
        (LengthPenalty, {"kind": "length_penalty", "free": 3, "full": 3}),
        (KeywordsReward, {"kind": "keywords"}),
        (KeywordsReward, {"kind": "keywords", "required": [" "]}),
        (FormatReward, {"kind": "format", "forms": []}),
        (LengthReward, {"kind": "length", "weight": float("nan")}),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, fields):
    with pytest.raises(ValueError, match=r".+"):
        settings.model_validate(fields)
