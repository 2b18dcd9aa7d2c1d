from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.data.jsonl import read_records
from alignment.data.split import opening
from alignment.errors import StageError
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.feedback.preferences import PreferenceFileStage
from alignment.records import PreferencePair, Prompt
from alignment.stage import StageContext
from alignment.stages.feedback.preference_file import run
from tests.contexts import stage_context

Writer = Callable[..., Path]


def context(path: Path, folder: Path, **stage: object) -> tuple[PreferenceFileStage, StageContext]:
    settings = {"kind": "preference_file", **stage}
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "model": {"base": "none"},
            "data": {"preferences": str(path), "held_out": 0.3},
            "stages": {"pairs": settings},
        }
    )
    (folder / "output").mkdir()
    made = stage_context("pairs", recipe, {}, {"preferences": path}, folder / "output", folder / "checkpoints")
    return PreferenceFileStage.model_validate(settings), made


def test_the_stage_splits_a_file_by_its_prompts(write_rows: Writer, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n % 30}", "chosen": f"a{n}", "rejected": "b"} for n in range(60)]
    path = write_rows([*rows, rows[0]])
    settings, given = context(path, tmp_path)
    result = run(settings, given)
    train = read_records(given.output / "pairs.jsonl", PreferencePair)
    held_out = read_records(given.output / "held_out.jsonl", PreferencePair)
    prompts = read_records(given.output / "prompts.jsonl", Prompt)
    assert len(train) + len(held_out) == 60
    assert not {opening(pair) for pair in train} & {opening(pair) for pair in held_out}
    assert [prompt.id for prompt in prompts] == list(dict.fromkeys(pair.prompt_id for pair in held_out))
    assert all(prompt.messages == pair.prompt for prompt in prompts for pair in held_out if pair.prompt_id == prompt.id)
    assert result.kind == "preferences"
    assert result.metrics == {
        "pairs": float(len(train)),
        "held_out_pairs": float(len(held_out)),
        "held_out_prompts": float(len(prompts)),
        "skipped.duplicate": 1.0,
    }
    assert given.work_seconds > 0


def test_a_split_with_an_empty_side_is_refused(write_rows: Writer, tmp_path: Path) -> None:
    path = write_rows([{"prompt": "q", "chosen": "a", "rejected": "b"}])
    settings, given = context(path, tmp_path)
    with pytest.raises(StageError, match=r"1 pairs to train on and 0 held out|0 pairs to train on and 1 held out"):
        run(settings, given)
    assert list(given.output.iterdir()) == []
