"""Slices: which there are, and the same figures on each of them."""

from alignment.evaluation.bootstrap import averaged
from alignment.evaluation.slices import accuracy_slices, evaluate_slices, prompt_slices
from alignment.records import Message, PreferencePair, Prompt


def prompt(number: int, words: int, kind: str = "talk", source: str = "") -> Prompt:
    messages = (Message(role="system", content="be brief " * 50), Message(role="user", content="word " * words))
    return Prompt(id=str(number), messages=messages, kind=kind, source=source)


PROMPTS = [
    prompt(0, 3, "sums", "logs"), prompt(1, 16, "talk", "logs"), prompt(2, 17, "talk", "synthetic"),
    prompt(3, 65, "sums"), prompt(4, 64, "talk", "synthetic"), prompt(5, 70, "odd"),
]  # fmt: skip


def test_slices_are_by_kind_length_and_source() -> None:
    found = {(part.by, part.value): places for part, places in prompt_slices(PROMPTS)}
    assert found == {
        ("kind", "sums"): [0, 3],
        ("kind", "talk"): [1, 2, 4],  # "odd" is one prompt, which shows nothing
        ("length", "up to 16 words"): [0, 1],  # of what the user said, not the system
        ("length", "17 to 64 words"): [2, 4],
        ("length", "more than 64 words"): [3, 5],
        ("source", "logs"): [0, 1],
        ("source", "no source given"): [3, 5],
        ("source", "synthetic"): [2, 4],
    }
    assert prompt_slices([prompt(i, 3) for i in range(4)]) == []  # what all share makes no slice


def test_every_figure_stands_on_every_slice_with_its_n() -> None:
    outcomes = {"base": {"rubric": [1.0, 0.0, 1.0, 1.0, 0.5, 0.0]}}
    sums = {
        "new": {"right": averaged([1, None, 0, 1, None, 1], binary=True), "long": averaged([1, 2, 3, 4, 5, 6])},
        "base": {"right": averaged([0, None, 0, 0, None, 1], binary=True), "long": averaged([1, 1, 1, 1, 1, 1])},
    }
    parts = {(part.by, part.value): part for part in evaluate_slices(PROMPTS, outcomes, sums, "new")}
    sums_slice, short = parts["kind", "sums"], parts["length", "up to 16 words"]
    assert (sums_slice.win_rates["base"]["rubric"].value, sums_slice.win_rates["base"]["rubric"].n) == (1.0, 2)
    assert (sums_slice.metrics["new"]["right"].value, sums_slice.leads["base"]["right"].value) == (1.0, 1.0)
    assert sums_slice.leads["base"]["right"].low < 0  # two of two is no proof
    assert (short.metrics["new"]["right"].n, short.metrics["new"]["long"].value) == (1, 1.5)
    assert "right" in parts["source", "synthetic"].metrics["new"]
    assert parts["length", "17 to 64 words"].leads["base"]["long"].value == 3.0


def test_a_metric_that_applies_to_nobody_in_a_slice_is_left_out() -> None:
    sums = {"new": {"right": averaged([1, None, None, 1, None, 1])}}
    parts = {(part.by, part.value): part for part in evaluate_slices(PROMPTS, {}, sums, "new")}
    assert parts["kind", "talk"].metrics == {"new": {}}


def test_a_reward_models_accuracy_by_slice() -> None:
    def pair(number: int, chosen: str, rejected: str, kind: str) -> PreferencePair:
        asked = (Message(role="user", content="Well?"),)
        return PreferencePair(
            id=str(number), prompt_id=str(number), prompt=asked, chosen=chosen, rejected=rejected, kind=kind
        )

    pairs = [pair(0, "a b", "a", "x"), pair(1, "a b c", "a", "x"), pair(2, "a", "a b", "y"), pair(3, "a", "b c", "y")]
    parts = {(part.by, part.value): part for part in accuracy_slices(pairs, [1.0, 2.0, -1.0, 0.0])}
    assert {key: (part.n, part.accuracy.value) for key, part in parts.items()} == {
        ("kind", "x"): (2, 1.0), ("kind", "y"): (2, 0.25),
        ("longer answer", "chosen"): (2, 1.0), ("longer answer", "rejected"): (2, 0.25),
    }  # fmt: skip
    assert parts["kind", "x"].accuracy.low < 0.5  # Wilson: two of two
