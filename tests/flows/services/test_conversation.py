"""What a conversation becomes: rows that the project's own readers take, written out by hand."""

import json
from pathlib import Path

import pytest

from alignment.data.demonstrations import read_demonstrations
from alignment.data.preferences import read_preferences
from alignment.errors import InputError
from alignment.records import Message
from flows.services.conversation import Conversation, SpokenAnswer


def talk(*turns: str, answers: tuple[SpokenAnswer, ...], system: str | None = None) -> Conversation:
    """Every turn of the user, answered the same."""
    conversation = Conversation(system)
    for text in turns:
        conversation = conversation.asked(text)
        conversation.answers.extend(answers)
    return conversation


def pairs(*texts: str) -> tuple[Message, ...]:
    roles = ("user", "assistant")
    return tuple(Message(role=roles[place % 2], content=text) for place, text in enumerate(texts))


def test_one_version_is_saved_as_a_demonstration(tmp_path: Path) -> None:
    path = tmp_path / "more" / "d.jsonl"
    said = talk("Hi", "Why?\u2028Tell me", answers=(SpokenAnswer("Because.", True),), system="Be brief.")
    assert said.save(path, pairs=False) == 1
    assert said.save(path, pairs=False) == 0  # it stands there
    assert talk("Who?", answers=(SpokenAnswer("Me.", True),)).save(path, pairs=False) == 1
    first, second = read_demonstrations(path)
    system = Message(role="system", content="Be brief.")
    assert first.messages == (system, *pairs("Hi", "Because.", "Why?\u2028Tell me", "Because."))
    assert second.messages == pairs("Who?", "Me.")
    assert [file.name for file in path.parent.iterdir()] == ["d.jsonl"]


def test_two_versions_are_saved_as_the_pairs_that_were_preferred(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    both = (SpokenAnswer("Red.", True), SpokenAnswer("Blue and", False))
    said = talk("Colour?", answers=both)
    said.prefer(2)
    said = said.asked("And now?")
    said.answers.extend((SpokenAnswer("Red.", True), SpokenAnswer("Green.", True)))
    said.prefer(1)
    assert said.save(path, pairs=True) == 2
    one, other = read_preferences(path).pairs
    assert (one.prompt, one.chosen, one.rejected) == (pairs("Colour?"), "Blue and", "Red.")
    assert (one.chosen_finished, one.rejected_finished) == (False, True)
    assert other.prompt == pairs("Colour?", "Blue and", "And now?")  # the better answer went on
    assert (other.chosen, other.rejected, other.chosen_finished) == ("Red.", "Green.", True)
    again = said.retried()
    assert (again.answers, again.attempt, again.turns) == ([], 1, said.turns)
    again.save(tmp_path / "q.jsonl", pairs=True)
    assert [pair.chosen for pair in read_preferences(tmp_path / "q.jsonl").pairs] == ["Blue and"]  # one was taken back
    anew = said.begun_anew("Be brief.").asked("Colour?")
    anew.answers.extend(both)
    anew.prefer(1)
    assert anew.save(path, pairs=True) == 1
    assert len(read_preferences(path).pairs) == 3


def test_without_a_word_the_first_answer_goes_on() -> None:
    said = talk("Colour?", answers=(SpokenAnswer("Red.", True), SpokenAnswer("Blue.", True))).asked("Sure?")
    assert said.messages() == pairs("Colour?", "Red.", "Sure?")


def test_what_cannot_be_saved_is_said_and_changes_no_file(tmp_path: Path) -> None:
    good, cut = (SpokenAnswer("Red.", True),), (SpokenAnswer("Red and", False),)
    kept = tmp_path / "kept.jsonl"
    kept.write_text('{"chosen": 1}\n', "utf-8")
    for said, path, both, words in [
        (Conversation(), tmp_path / "a.jsonl", False, "nothing was answered yet"),
        (talk("Colour?", answers=cut), tmp_path / "a.jsonl", False, "an answer was cut off"),
        (talk("Colour?", answers=cut).asked("Go on"), tmp_path / "a.jsonl", False, "nothing was answered yet"),
        (talk("Colour?", answers=(SpokenAnswer(" ", True),)), tmp_path / "a.jsonl", False, "is empty"),
        (talk("Colour?", answers=good * 2), tmp_path / "a.jsonl", True, "no answer was preferred yet"),
        (talk("Colour?", answers=good), tmp_path / "a.txt", False, "use .jsonl"),
        (talk("Colour?", answers=good), kept, False, f"{kept}:1"),
        (talk("Colour?", answers=good), tmp_path / "kept.jsonl" / "b.jsonl", False, "cannot be"),
    ]:
        with pytest.raises(InputError) as caught:
            said.save(path, pairs=both)
        assert words in str(caught.value)
        assert "tmp" not in str(caught.value).replace(str(tmp_path), "")
    cut_before = talk("Colour?", answers=cut).asked("Go on")
    cut_before.answers.append(SpokenAnswer("Blue.", True))
    with pytest.raises(InputError, match="an answer was cut off"):
        cut_before.save(tmp_path / "a.jsonl", pairs=False)
    assert [file.name for file in tmp_path.iterdir()] == ["kept.jsonl"]
    assert json.loads(kept.read_text("utf-8")) == {"chosen": 1}


def test_a_preference_needs_two_answers_that_differ() -> None:
    with pytest.raises(InputError, match="no two answers"):
        talk("Colour?", answers=(SpokenAnswer("Red.", True),)).prefer(1)
    with pytest.raises(InputError, match="say the same"):
        talk("Colour?", answers=(SpokenAnswer("Red.", True), SpokenAnswer("Red. ", True))).prefer(2)
