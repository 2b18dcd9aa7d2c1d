"""What `rlhf check` says of a benchmark's prompts: those that the template refuses, and those that leave no room."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.checks.recipe import check_recipe
from alignment.recipe.resolved import resolve_recipe


def faults(
    folder: Path, make_recipe: Callable[..., Path], rows: list[dict[str, str]], form: dict[str, Any]
) -> list[str]:
    path = make_recipe(folder / "recipe", stages=("sft",))
    recipe = json.loads(path.read_text())
    (path.parent / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = [{"prompt": f"What is {n}?", "reference": str(n)} for n in range(30, 40)]
    (path.parent / "e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
    task = {"questions": "q.jsonl", "examples": "e.jsonl", "answer": "number"}
    recipe["stages"]["ask"] = {"kind": "benchmark", "tasks": {"sums": task}, "forms": {"one": form}}
    recipe.pop("gate", None)
    path.write_text(json.dumps(recipe))
    found = [str(fault) for fault in check_recipe(resolve_recipe(path))]
    return [line for line in found if "stages.ask" in line or "question" in line]


def test_a_form_that_fits_is_no_fault(tmp_path: Path, make_recipe: Callable[..., Path]) -> None:
    assert faults(tmp_path, make_recipe, [{"prompt": "1 + 1?", "reference": "2"}], {"max_new_tokens": 4}) == []


@pytest.mark.parametrize("form", [{"max_new_tokens": 100_000}, {"shots": 10, "max_new_tokens": 5000}])
def test_an_answer_that_would_not_fit(tmp_path: Path, make_recipe: Callable[..., Path], form: dict[str, Any]) -> None:
    [line] = faults(tmp_path, make_recipe, [{"prompt": "1 + 1?", "reference": "2"}], form)
    assert "stages.ask.forms.one" in line
    assert f"{form['max_new_tokens']} new tokens after the longest prompt's" in line
    assert "are more than the model's context of" in line


def test_a_control_token_in_a_question(tmp_path: Path, make_recipe: Callable[..., Path]) -> None:
    from alignment.chat import load_tokenizer

    path = make_recipe(tmp_path / "model", stages=("sft",))
    token = load_tokenizer(json.loads(path.read_text())["model"]["base"]).eos_token
    [line] = faults(tmp_path, make_recipe, [{"prompt": f"1 {token} 1?", "reference": "2"}], {"max_new_tokens": 4})
    assert "stages.ask.forms.one" in line
    assert "a control token of the model" in line


def test_a_question_that_is_trained_on(tmp_path: Path, make_recipe: Callable[..., Path]) -> None:
    """The tiny recipe's first demonstration, in other letters."""
    path = make_recipe(tmp_path / "data", stages=("sft",))
    first = json.loads((path.parent / "demonstrations.jsonl").read_text().splitlines()[0])
    asked = first.get("prompt") or first["messages"][0]["content"]
    [line] = faults(tmp_path, make_recipe, [{"prompt": asked.upper(), "reference": "2"}], {"max_new_tokens": 4})
    assert "demonstrations.jsonl:1" in line
    assert "the prompt is a benchmark's question, and would be trained on here; remove the row, or the question" in line
