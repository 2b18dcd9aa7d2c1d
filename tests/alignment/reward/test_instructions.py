"""IFEval's verifiable instructions: answers that follow them and answers that do not, by hand."""

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from alignment.data.prompts import parse_prompt, scan_prompts
from alignment.errors import InputError, StageError
from alignment.recipe.rewards.verifiable import InstructionsReward
from alignment.records import Prompt
from alignment.reward.instructions import InstructionChecker, instructions, instructions_of
from alignment.reward.protocol import RewardInput

if any(importlib.util.find_spec(name) is None for name in ("lm_eval", "langdetect")):
    pytest.skip("the checkers come with pip install 'rlhf-flows[ifeval]'", allow_module_level=True)

# Instruction, its arguments, an answer that follows it, one that does not. Sentences and capitals need Punkt.
BY_HAND: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["harbour", "tide"]}, "The tide fills the harbour.", "The tide is out."),
    ("keywords:frequency", {"keyword": "sea", "frequency": 2, "relation": "at least"}, "Sea and sea.", "One sea."),
    ("keywords:frequency", {"keyword": "sea", "frequency": 2, "relation": "less than"}, "One sea.", "Sea and sea."),
    ("keywords:forbidden_words", {"forbidden_words": ["bad"]}, "All is badly good.", "This is bad."),
    ("keywords:letter_frequency", {"letter": "z", "let_frequency": 2, "let_relation": "at least"}, "Zig zag.", "Zoo."),
    ("language:response_language", {"language": "de"}, "Das ist ein kurzer Satz über das Wetter.",
     "This is a short sentence about the weather."),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"},
     "Dr. Smith came at 5 p.m. on Monday. He left.", "He came. He saw. He left."),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"},
     "He came. He saw. He left.", "Mr. Jones met Mrs. Jones."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One.\n***\nTwo.", "One.\n\nTwo."),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "One two three four.", "One two."),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
     "First this.\n\nThen that.", "First this.\n\nAnd then that."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [town]", "[name] of a town"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Hello.\nP.S. Bye.", "Hello. Bye."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n* two", "* one\n* two\n* three"),
    ("detectable_format:constrained_response", {}, "My answer is yes.", "Yes."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and *two*", "*one* and two"),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2},
     "Section 1\nA.\nSection 2\nB.", "Section 1\nA."),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "a: 1"),
    ("detectable_format:title", {}, "<<Tides>>\nThey come.", "Tides\nThey come."),
    ("combination:two_responses", {}, "One.\n******\nTwo.", "One.\nTwo."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "Say it. It is said.", "It is said."),
    ("startend:end_checker", {"end_phrase": "That is all."}, "One. That is all.", "That is all. One."),
    ("startend:quotation", {}, '"All of it."', 'Not "all" of it.'),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"},
     "NOW and THEN.", "NOW and then."),
    ("change_case:english_capital", {}, "THIS IS A SENTENCE ABOUT THE WEATHER.", "This is a sentence."),
    ("change_case:english_lowercase", {}, "this is a sentence about the weather.", "This is a sentence about it."),
    ("punctuation:no_comma", {}, "One and two.", "One, two."),
]  # fmt: skip


@pytest.fixture(scope="module")
def checker() -> Any:
    made = InstructionChecker()
    yield made
    made.close()


def prompt(*named: tuple[str, dict[str, Any]], text: str = "Say it.") -> Prompt:
    """A prompt as IFEval's rows have it; tables hold null for the arguments of others."""
    kwargs = [{**given, "unused": None} for _name, given in named]
    return parse_prompt({"prompt": text, "instruction_id_list": [name for name, _given in named], "kwargs": kwargs})


def test_every_instruction_by_hand(checker: InstructionChecker) -> None:
    for name, given, follows, does_not in BY_HAND:
        asked = instructions_of(prompt((name, given)))
        assert asked is not None
        assert checker.followed(asked, follows, loose=False) == [True], (name, follows)
        assert checker.followed(asked, does_not, loose=False) == [False], (name, does_not)
        assert checker.followed(asked, "", loose=False) == [False], name  # an empty answer follows nothing


def test_every_instruction_of_the_real_prompts_is_among_them_and_can_be_checked(
    checker: InstructionChecker, real_data: Path, tmp_path: Path
) -> None:
    file = real_data / "ifeval_half.jsonl.gz"
    if not file.exists():
        pytest.skip(f"no {file.name}")
    with gzip.open(file, "rt", encoding="utf-8") as packed:
        rows = [json.loads(line) for line in packed]
    assert {name for row in rows for name in row["instruction_id_list"]} <= {name for name, *_rest in BY_HAND}
    plain = tmp_path / "ifeval.jsonl"
    plain.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    prompts, _duplicates, faults = scan_prompts(plain)
    assert faults == []
    asked = [found for _row, one in prompts if (found := instructions_of(one)) is not None]
    assert len(asked) == len(prompts) == len(rows)
    assert set(checker.problems(asked)) == {None}


def test_the_reward_counts_prompts_or_instructions() -> None:
    asked = prompt(("punctuation:no_comma", {}), ("keywords:existence", {"keywords": ["tide"]}))
    answers = [RewardInput(asked, text, 5) for text in ("The tide.", "The tide, now.", "Sea, now.")]
    assert list(instructions(InstructionsReward(kind="instructions"))(answers)) == [1.0, 0.0, 0.0]  # type: ignore[arg-type]
    share = InstructionsReward(kind="instructions", counts="share")
    assert list(instructions(share)(answers)) == [1.0, 0.5, 0.0]  # type: ignore[arg-type]


def test_loosely_an_answer_may_lose_its_first_line_its_last_or_its_asterisks(checker: InstructionChecker) -> None:
    ends = instructions_of(prompt(("startend:end_checker", {"end_phrase": "That is all."})))
    assert ends is not None
    text = "Sure, here it is:\nOne. That is all.\nI hope this helps!"
    assert checker.followed(ends, text, loose=False) == [False]
    assert checker.followed(ends, text, loose=True) == [True]
    said = instructions_of(prompt(("detectable_format:number_bullet_lists", {"num_bullets": 2})))
    assert said is not None
    assert checker.followed(said, "* one\n* two\n* three", loose=True) == [True]  # without a line it has two


def test_the_language_is_told_alike_every_time(checker: InstructionChecker) -> None:
    """langdetect by itself draws at random: short texts are now of one language and now of another."""
    asked = instructions_of(prompt(("language:response_language", {"language": "de"})))
    assert asked is not None
    for text in ("Hallo", "tag", "na gut"):
        assert len({tuple(checker.followed(asked, text, loose=False)) for _ in range(12)}) == 1
    with pytest.raises(StageError, match="cannot be checked"):
        checker.followed({**asked, "kwargs": [{"language": "xx"}]}, "Hallo", loose=False)


def test_a_pattern_that_never_ends_gets_nothing(
    checker: InstructionChecker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("alignment.reward.instructions.SECONDS", 2.0)
    asked = {"prompt": "", "instructions": ["keywords:existence"], "kwargs": [{"keywords": ["(a+)+$"]}]}
    assert checker.followed(asked, "a" * 60 + "!", loose=False) == [False]
    assert "did not end within 2 s on an answer of 61 characters" in caplog.text
    monkeypatch.undo()
    assert checker.followed(asked, "aaa", loose=False) == [True]  # by a new process


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"instruction_id_list": "punctuation:no_comma", "kwargs": [{}]},
            "instruction_id_list: no list of instructions",
        ),
        ({"instruction_id_list": [], "kwargs": []}, "instruction_id_list: no list of instructions"),
        ({"instruction_id_list": ["punctuation:no_comma"]}, "kwargs: no list of 1 mappings"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}, {}]}, "kwargs: no list of 1 mappings"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}], "reference": "x"}, "reference: a reference"),
    ],
)
def test_a_row_that_is_wrong(row: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_prompt({"prompt": "Say it.", **row})
    assert said in str(refused.value)


def test_arguments_that_do_not_fit_are_named(checker: InstructionChecker) -> None:
    """What a row leaves out the checkers would draw at random."""
    wrong = {
        "IFEval knows no instruction 'punctuation:none'": ("punctuation:none", {}),
        "length_constraints:number_words wants num_words, relation": ("length_constraints:number_words", {}),
        "length_constraints:number_words wants num_words": (
            "length_constraints:number_words", {"num_words": 0, "relation": "at least"}),
        "punctuation:no_comma knows no words": ("punctuation:no_comma", {"words": 3}),
    }  # fmt: skip
    asked = [{"prompt": "", "instructions": [name], "kwargs": [given]} for name, given in wrong.values()]
    assert checker.problems(asked) == list(wrong)
    broken = {"prompt": "", "instructions": ["keywords:existence"], "kwargs": [{"keywords": ["("]}]}
    (said,) = checker.problems([broken])
    assert said is not None
    assert said.startswith("keywords:existence cannot be checked")
