"""The review desk over HTTP as a browser calls it: only administrators, only these events, and texts as they are."""

from collections.abc import Callable
from typing import Any

import pytest

from preference_ui.labelling.ruling import read_ruling
from preference_ui.store.errors import Refusal

FIND = ["any", "any", "any", "", "", None, None, 1]


def test_the_list_opens_records_and_decides_them(call: Callable[..., Any]) -> None:
    rows, said = call("find", *FIND)
    assert said == "1 records; page 1 of 1"
    [row] = rows["data"]
    assert row[:5] == ["c0", "q", "<b>Which?</b>", 1, "0%"]
    opened = call("open", "c0")
    assert opened[1] == "user: <b>Which?</b>"
    assert [vote[:4] for vote in opened[3]["data"]] == [["ada", "both bad", "", "*no*"]]
    clicked = call("select", event_data={"index": [0, 0], "value": "c0", "row_value": row, "selected": True})
    assert clicked[0] == "c0"
    decided = call("decide", "c0", "a > b", "why not")
    assert decided[-1] == "Decided."
    assert [vote[1] for vote in decided[3]["data"]] == ["both bad", "A > B (2)"]
    assert call("withdraw", "c0")[-1] == "Withdrawn."
    assert call("put_back", "c0")[-1] == "Put back."
    assert call("open", "c9")[-1] == "There is no such record."
    assert "every answer once" in call("decide", "c0", "a > a", "")[-1]


def test_nobody_else_and_nothing_else(call: Callable[..., Any]) -> None:
    assert call("find", *FIND, by="ada") == 403
    assert call("find", *FIND, by="nobody") == 401
    for path in ("queue/join", "call/find", "run/find", "component_server/", "reset", "cancel"):
        assert call("find", *FIND, path=path) == 404


@pytest.mark.parametrize(
    ("text", "answers", "strength"), [("a > b", 2, -2), ("B>>A", 2, 3), (" a = b ", 2, 0), ("b > a", 2, 2)]
)
def test_a_ruling_is_read_from_letters(text: str, answers: int, strength: int) -> None:
    assert read_ruling(text, answers) == {"outcome": "ranked", "strength": strength}


def test_a_ruling_of_three_and_what_is_none() -> None:
    assert read_ruling("c > a = b", 3)["ranking"] == [[2], [0, 1]]
    assert read_ruling("both bad", 3) == {"outcome": "both_bad"}
    for nonsense in ("", "a", "a > b > a", "a > d", "d", "ab", None, "a > b"):
        with pytest.raises(Refusal, match="every answer once"):
            read_ruling(nonsense, 3)
