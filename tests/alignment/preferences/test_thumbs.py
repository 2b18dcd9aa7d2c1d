"""Thumbs: expected labels by counting by hand."""

import json
from pathlib import Path

import pytest

from alignment.errors import InputError
from alignment.preferences.comparison_files import stream_comparisons
from alignment.preferences.consensus import consensus, rating_table
from alignment.preferences.preference_files import numbered_comparisons
from alignment.preferences.thumbs import labelled_answers, write_labelled_answers
from alignment.preferences.vote_agreement import agreement_figures
from alignment.records import Comparison, Message, Outcome, Prompt, Response, Sampling, Vote


def _comparison(name: str, *texts: str, finished: bool = True, turns: int = 1) -> Comparison:
    messages = tuple(
        Message(role="user" if at % 2 == 0 else "assistant", content=f"{name}, turn {at}?") for at in range(turns)
    )
    prompt = Prompt(id=f"p-{name}", messages=messages)
    responses = tuple(
        Response(id=f"{name}-{at}", prompt_id=prompt.id, text=text, model="m", sampling=Sampling(), seed=0, tokens=1,
                 finished=finished)
        for at, text in enumerate(texts)
    )  # fmt: skip
    return Comparison(id=name, prompt=prompt, responses=responses)


def _votes(comparison: str, *outcomes: Outcome) -> list[Vote]:
    return [
        Vote(id=f"{comparison}-v{at}", comparison_id=comparison, rater=f"r{at}", rater_kind="human", outcome=outcome)
        for at, outcome in enumerate(outcomes)
    ]


def test_the_majority_labels_an_answer_and_level_votes_do_not() -> None:
    items = [_comparison(name, f"text {name}") for name in ("good", "bad", "level", "unseen", "flagged", "skipped")]
    votes = [
        *_votes("good", "up", "up", "down", "skipped"),
        *_votes("bad", "down"),
        *_votes("level", "up", "down"),
        *_votes("flagged", "up", "flagged", "flagged", "flagged"),
        *_votes("skipped", "skipped"),
    ]
    found = {one.id: one for one in labelled_answers(items, votes)}
    assert {name: one.label for name, one in found.items()} == {"good": True, "bad": False, "flagged": True}
    assert (found["good"].raters, found["good"].agreement) == (3, pytest.approx(2 / 3))
    assert found["flagged"].agreement == 0.25
    assert [one.id for one in labelled_answers(items, votes, min_agreement=0.7)] == ["bad"]


def test_a_changed_thumb_counts_once_as_it_is_now() -> None:
    first, second = _votes("one", "up")[0], _votes("one", "down")[0]
    changed = second.model_copy(update={"id": "later", "supersedes": first.id})
    (label,) = labelled_answers([_comparison("one", "text")], [first, changed])
    assert (label.label, label.raters) == (False, 1)


def test_the_file_has_trls_unpaired_columns(tmp_path: Path) -> None:
    cut = labelled_answers([_comparison("a", "yes", finished=False)], _votes("a", "up"))
    path = tmp_path / "thumbs.jsonl"
    write_labelled_answers(path, cut)
    assert json.loads(path.read_text()) == {
        "prompt": [{"role": "user", "content": "a, turn 0?"}],
        "completion": [{"role": "assistant", "content": "yes"}],
        "label": True, "finished": False, "raters": 1, "agreement": 1.0,
    }  # fmt: skip
    write_labelled_answers(path, cut, "text")
    assert json.loads(path.read_text())["prompt"] == "a, turn 0?"
    assert json.loads(path.read_text())["completion"] == "yes"
    talk = labelled_answers([_comparison("b", "yes", turns=3)], _votes("b", "down"))
    with pytest.raises(InputError, match="conversation"):
        write_labelled_answers(path, talk, "text")
    with pytest.raises(InputError, match="jsonl"):
        write_labelled_answers(tmp_path / "thumbs.txt", cut)


def test_thumbs_beside_pairs_change_no_figure_of_the_pairs() -> None:
    pair, single = _comparison("pair", "x", "y"), _comparison("one", "z")
    ranked = [
        Vote(id=f"v{at}", comparison_id="pair", rater=f"r{at}", rater_kind="human", outcome="ranked",
             ranking=(("pair-0",), ("pair-1",)), strength=1)
        for at in range(2)
    ]  # fmt: skip
    both = [*ranked, *_votes("one", "up", "down")]
    assert consensus([pair, single], both) == consensus([pair], ranked)
    assert rating_table([pair, single], both) == rating_table([pair], ranked)
    figures = agreement_figures([pair, single], both)
    assert [one for one in figures if one.of != "thumb"] == agreement_figures([pair], ranked)


def test_how_far_thumbs_agree_by_hand() -> None:
    """Two raters on four answers: up up, up up, down down, up down. Disagreements that were seen: 1 of 4; by chance,
    of 5 up and 3 down, 2·5·3 / (8·7) = 15/28. α = 1 − (1/4) / (15/28) = 8/15 (Krippendorff 2011)."""
    items = [_comparison(name, f"text {name}") for name in "abcd"]
    said: list[tuple[Outcome, Outcome]] = [("up", "up"), ("up", "up"), ("down", "down"), ("up", "down")]
    votes = [vote for item, pair in zip(items, said, strict=True) for vote in _votes(item.id, *pair)]
    votes += _votes("a", "skipped", "flagged", "skipped")[2:]  # no rating
    found = {(one.of, one.statistic): one for one in agreement_figures(items, votes)}
    assert found["thumb", "percent_agreement"].value == pytest.approx(3 / 4)
    assert found["thumb", "krippendorff_alpha"].value == pytest.approx(8 / 15)
    assert found["thumb", "krippendorff_alpha"].units == 4
    assert found["verdict", "krippendorff_alpha"].value is None


def test_a_thumb_on_two_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="on one answer"):
        consensus([_comparison("pair", "x", "y")], _votes("pair", "up"))


def test_one_answer_may_be_queued_and_is_no_comparison_for_judges(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Why?", "response": "Because."}) + "\n")
    [read] = stream_comparisons(path, fewest=1)
    assert isinstance(read, tuple)
    _row, known = read
    assert [one.text for one in known.comparison.responses] == ["Because."]
    with pytest.raises(InputError):
        numbered_comparisons(path)
    path.write_text(known.comparison.model_dump_json() + "\n")
    assert len(list(stream_comparisons(path, fewest=1))) == 1
    with pytest.raises(InputError, match="one answer alone"):
        numbered_comparisons(path)
