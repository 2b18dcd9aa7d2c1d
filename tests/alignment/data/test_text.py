import pytest

from alignment.data import text as texts


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("Paris", 1),
        ("Dr. Smith met Mr. Jones. They talked!", 2),
        ("It costs 3.50 euros.", 1),
        ("One\nTwo\n\nThree", 3),
        ('"Stop." He stopped.', 2),
        ("```python\nx = 1\nprint(x)\n```", 0),
        ("Use `a. b. c.` here.", 1),
        ("...", 0),
    ],
)
def test_sentences_are_counted_as_a_reader_counts_them(text: str, count: int) -> None:
    assert len(texts.sentences(text)) == count


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("She has 1,250 coins and 3.5 cakes.", [1250, 3.5]),
        ("twenty-four and seven", [24, 7]),
        ("It is -4 degrees", [-4]),
        ("x2 and 8 * 5 = 40.", [8, 5, 40]),
        ("someone", []),
    ],
)
def test_numbers_are_read_in_digits_and_words(text: str, numbers: list[float]) -> None:
    assert texts.numbers(text) == numbers


def test_options_are_read_from_the_question() -> None:
    assert texts.options("Is a whale a mammal or a fish?") == [{"mammal", "fish"}]
    assert texts.options("Does it belong in sport, politics or cooking?") == [{"sport", "politics", "cooking"}]
    assert texts.options("Name a bird.") == []


def test_words_of_one_stem_are_one_subject() -> None:
    assert texts.subjects("The costly plants") & texts.subjects("it costs the plant") == {"cost", "plant"}
    assert texts.subjects("Why is it so?") == set()


def test_copied_run_is_the_longest_shared_stretch() -> None:
    answer, question = texts.words("So the capital of Norway is Oslo"), texts.words("What is the capital of Norway?")
    assert texts.copied_run(answer, question) == 4


@pytest.mark.parametrize("text", ["# Title\ntext", "- one\n- two", "1. one", "**bold** word"])
def test_markup_is_seen(text: str) -> None:
    assert texts.has_markup(text)


def test_code_is_not_markup() -> None:
    assert not texts.has_markup("```\n# a comment\n- 1\n```\nThat is 3 * 4 * 5.")
