"""Teachers from outside, as the check sees them: whether they are there, and what their vocabulary lets them teach."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from alignment.checks.recipe import check_recipe
from alignment.recipe.resolved import resolve_recipe
from alignment.workspace import Workspace
from tests.tiny_encoders import write_encoder
from tests.tiny_seq2seq import write_seq2seq

OTHER = {"prompts": [{"prompt": f"What is {n}?"} for n in range(20)],
         "shown": [{"prompt": f"Who is {n}?", "completion": "a"} for n in range(5)]}  # fmt: skip


@pytest.mark.parametrize("reader", ["distil", "sample", "evaluate"])
def test_another_vocabulary_is_for_answers_alone(
    reader: str, byte_model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    faults = checked(tmp_path, byte_model, {"teacher": {"kind": "outside_model", "folder": str(tiny_model)}, **{
        "distil": {"learned": {"kind": "distil", "teacher": "teacher", "max_length": 60}},
        "sample": {"drawn": {"kind": "sample", "model": "teacher", "sampling": {"max_new_tokens": 4}}},
        "evaluate": {"judged": {"kind": "evaluate", "model": "base", "reference": "teacher", "against": [],
                                "metrics": ["refusal"], "sampling": {"max_new_tokens": 4}}},
    }[reader]})  # fmt: skip
    if reader == "sample":
        assert faults == []
        return
    [fault] = faults
    size = len(AutoTokenizer.from_pretrained(tiny_model))
    assert f"teacher has another vocabulary ({size} tokens, and the base 259)" in fault
    assert ("learn from its answers: sample, rejection_sampling, sft" in fault) == (reader == "distil")
    assert "\n" not in fault


def test_a_teacher_with_the_bases_vocabulary_may_teach_distributions(byte_model: Path, tmp_path: Path) -> None:
    stages = {"teacher": {"kind": "outside_model", "folder": str(byte_model)},
              "learned": {"kind": "distil", "teacher": "teacher", "max_length": 60}}  # fmt: skip
    assert checked(tmp_path, byte_model, stages) == []


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"folder": "nowhere"}, "no folder"),
        ({"hub": "some/teacher"}, "no model 'some/teacher'"),
        ({"version": "policy@champion"}, "there is no registered model 'policy'"),
    ],
)
def test_a_teacher_that_is_not_there_is_told_by_the_check(
    place: dict[str, str], words: str, byte_model: Path, tmp_path: Path
) -> None:
    stages = {"teacher": {"kind": "outside_model", **place},
              "learned": {"kind": "distil", "teacher": "teacher", "max_length": 60}}  # fmt: skip
    [fault] = checked(tmp_path, byte_model, stages)
    assert words in fault
    assert "\n" not in fault


@pytest.mark.parametrize("kind", ["bert", "t5", "no head", "no template"])
def test_a_teacher_that_is_no_policy_is_told_by_the_check(kind: str, byte_model: Path, tmp_path: Path) -> None:
    teacher, words = tmp_path / "teacher", "is no causal language model"
    if kind == "bert":
        write_encoder(teacher, "bert")
        words = "holds a BertForMaskedLM"
    elif kind == "t5":
        write_seq2seq(teacher, "t5")
    else:
        shutil.copytree(byte_model, teacher)
    if kind == "no template":
        (teacher / "chat_template.jinja").unlink()
        words = "the model has no chat template"
    if kind == "no head":
        weights = load_file(teacher / "model.safetensors")
        left_out = min(name for name in weights if "layers.0" in name)
        save_file({name: value for name, value in weights.items() if name != left_out},
                  teacher / "model.safetensors", {"format": "pt"})  # fmt: skip
        words = f"it does not hold {left_out}"
    stages = {"teacher": {"kind": "outside_model", "folder": str(teacher)},
              "drawn": {"kind": "sample", "model": "teacher", "sampling": {"max_new_tokens": 4}}}  # fmt: skip
    [fault] = checked(tmp_path, byte_model, stages)
    assert words in fault
    assert "\n" not in fault


def checked(folder: Path, base: Path, stages: dict[str, Any]) -> list[str]:
    for name, rows in OTHER.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"name": "test", "model": {"base": str(base)}, "stages": stages,
              "data": {"prompts": "prompts.jsonl", "demonstrations": "shown.jsonl"}}  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return [str(fault) for fault in check_recipe(resolve_recipe(path), Workspace(folder / "workspace"))]
