"""Structured logs of a real run: each line is JSON, and says which run, stage and version it is about."""

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.monitoring import logs


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    kept = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in logs.OURS}
    yield
    for name, (handlers, propagate) in kept.items():
        logging.getLogger(name).handlers, logging.getLogger(name).propagate = handlers, propagate


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_says_what_it_does(
    rlhf: Callable[..., Any], make_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_LOG", "json")
    ended = rlhf("run", make_recipe(tmp_path / "recipe", stages=("sft",)), "-w", tmp_path / "space")
    assert ended.code == 0
    said = lines(ended.err)
    assert {(line["run"], line["recipe"]) for line in said} == {("tiny-1", "tiny")}
    steps = [line for line in said if "step" in line]
    assert steps
    assert all(line["stage"] == "sft" and line["steps"] == 12 and "loss" in line["metrics"] for line in steps)
    [finished] = [line for line in said if line.get("stage") == "sft" and line.get("status") == "completed"]
    assert finished["version"].startswith("sft@1:")
    assert len(finished["digest"]) == 64
    assert finished["seconds"] > 0
    again = rlhf("run", tmp_path / "recipe" / "tiny.yaml", "-w", tmp_path / "space")
    assert [line["status"] for line in lines(again.err) if line.get("stage") == "sft" and "status" in line] == [
        "cached"
    ]


def test_a_record_as_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_LOG", "json")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for name in logs.OURS:
        logging.getLogger(name).handlers = []
    logs.set_up()
    logs.set_up()  # once is enough
    with logs.about(run="r-1"), logs.about(stage="dpo"):
        try:
            raise ValueError("two\nlines")
        except ValueError:
            logging.getLogger("flows.x").exception("it went wrong: %s", "here")
    logging.getLogger("flows.x").warning("afterwards")
    first, second = lines(sys.stderr.getvalue())  # type: ignore[attr-defined]
    assert {key: first[key] for key in ("level", "logger", "message", "run", "stage")} == {
        "level": "error", "logger": "flows.x", "message": "it went wrong: here", "run": "r-1", "stage": "dpo",
    }  # fmt: skip
    assert "ValueError: two\nlines" in first["error"]
    assert "run" not in second


def test_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLHF_LOG", raising=False)
    logging.getLogger("flows").handlers = []
    logs.set_up()
    assert logging.getLogger("flows").handlers == []
