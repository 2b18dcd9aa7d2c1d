"""What commands make of their arguments."""

import subprocess
import sys
from pathlib import Path

import pytest

from alignment.errors import InputError
from alignment.workspace import Workspace
from flows.recipe_source import RECIPES, find_recipe
from flows.runs import claim_run

CLAIM = """
import sys
from pathlib import Path
from alignment.workspace import Workspace
from flows.runs import claim_run
sys.stdin.read(1)
print(*(claim_run(Workspace(Path(sys.argv[1])), "tiny") for _ in range(50)))
"""


def test_runs_that_begin_at_once_have_names_of_their_own(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", CLAIM, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"x")
        process.stdin.flush()
    names = [name for process in processes for name in process.communicate()[0].decode().split()]
    assert sorted(names) == sorted({f"tiny-{number}" for number in range(1, 201)})


def test_a_recipes_name_is_no_pattern(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    assert [claim_run(space, name) for name in ("a.b", "axb", "a.b")] == ["a.b-1", "axb-1", "a.b-2"]


def test_a_folder_of_a_shipped_recipes_name_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rlaif").mkdir()  # `rlhf run rlaif --workspace rlaif`, a second time
    assert find_recipe("rlaif") == RECIPES / "rlaif.yaml"
    (tmp_path / "rlaif").rmdir()
    (tmp_path / "rlaif").write_text("name: mine\n")
    assert find_recipe("rlaif") == Path("rlaif")
    with pytest.raises(InputError, match="no recipe 'nothing-of-that-name'; known here: "):
        find_recipe("nothing-of-that-name")
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="'mine' is a folder, not a recipe"):
        find_recipe("mine")
