"""What ``--over`` means: the inside of a YAML list."""

import pytest

from alignment.errors import InputError
from alignment.sweeps.grid import Axis, Variant, read_axes, variants_of


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.05,0.1,0.3", (0.05, 0.1, 0.3)),
        ("1e-5, 2e-5", (1e-5, 2e-5)),
        ("sigmoid,ipo", ("sigmoid", "ipo")),
        ("true,null", (True, None)),
        ("[a, b],[a]", (["a", "b"], ["a"])),
        ('"a, b",c', ("a, b", "c")),
        ("{rank: 4},{rank: 8, alpha: 16}", ({"rank": 4}, {"rank": 8, "alpha": 16})),
        ("data/a.jsonl,data/b=c.jsonl", ("data/a.jsonl", "data/b=c.jsonl")),
    ],
)
def test_values_are_the_inside_of_a_list(text: str, values: tuple[object, ...]) -> None:
    [axis] = read_axes([f"stages.dpo.x={text}"])
    assert axis == Axis("stages.dpo.x", values)
    assert [type(one) for one in axis.values] == [type(one) for one in values]


EXAMPLE = "write --over stages.dpo.beta=0.05,0.1,0.3"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            "stages.dpo.beta",
            "--over: 'stages.dpo.beta' is not KEY=VALUE,VALUE; write --over stages.dpo.beta=0.05,0.1,0.3",
        ),
        ("=1,2", f"--over: '=1,2' is not KEY=VALUE,VALUE; {EXAMPLE}"),
        ("a..b=1,2", f"--over: 'a..b=1,2' is not KEY=VALUE,VALUE; {EXAMPLE}"),
        ("a.b=", f"--over:a.b: no values; {EXAMPLE}"),
        ("a.b=0.1", "--over:a.b: one value alone compares with nothing; give another one, or write --set a.b=0.1"),
        ("a.b=0.1,0.2,0.10", "--over:a.b: 0.1 stands twice; remove one"),
        ("a.b=1,1.0", "--over:a.b: 1 stands twice; remove one"),
    ],
)
def test_a_mistake_is_one_line(given: str, line: str) -> None:
    with pytest.raises(InputError) as raised:
        read_axes([given])
    assert [str(fault) for fault in raised.value.faults] == [line]


@pytest.mark.parametrize("text", ["[a,b", "0.1,,0.2", '"a', "a]b"])
def test_what_is_no_list_is_one_line(text: str) -> None:
    with pytest.raises(InputError) as raised:
        read_axes([f"a.b={text}"])
    [fault] = raised.value.faults
    assert str(fault).startswith(f"--over:a.b: {text!r} is no list of values: ")
    assert "\n" not in str(fault)


def test_all_mistakes_come_at_once() -> None:
    with pytest.raises(InputError) as raised:
        read_axes(["a", "b.c=1", "d.e=1,2", "d.e=3,4"])
    assert [fault.field for fault in raised.value.faults] == [None, "b.c", "d.e"]
    with pytest.raises(InputError, match="nothing to compare"):
        read_axes([])


def test_a_grid_has_every_combination_once() -> None:
    found = variants_of(read_axes(["stages.dpo.beta=0.1,0.3", "stages.sft.epochs=1,2,3"]))
    assert len(found) == 6
    assert found[1] == Variant((("stages.dpo.beta", 0.1), ("stages.sft.epochs", 2)))
    assert found[1].name == "beta=0.1, epochs=2"
    assert found[1].overrides == ["stages.dpo.beta=0.1", "stages.sft.epochs=2"]


def test_names_are_as_short_as_they_can_be_and_no_shorter() -> None:
    [first, *_] = variants_of(read_axes(["stages.dpo.beta=0.1,0.3", "stages.grpo.beta=1,2", "seed=1,2"]))
    assert first.name == "dpo.beta=0.1, grpo.beta=1, seed=1"
