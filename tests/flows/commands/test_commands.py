"""What commands make of their arguments."""

from pathlib import Path

import pytest

from flows.recipe_source import RECIPES, find_recipe


def test_a_folder_of_a_shipped_recipes_name_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rlaif").mkdir()  # `rlhf run rlaif --workspace rlaif`, a second time
    assert find_recipe("rlaif") == RECIPES / "rlaif.yaml"
    (tmp_path / "rlaif").rmdir()
    (tmp_path / "rlaif").write_text("name: mine\n")
    assert find_recipe("rlaif") == Path("rlaif")
    assert find_recipe("nothing-of-that-name") == Path("nothing-of-that-name")
