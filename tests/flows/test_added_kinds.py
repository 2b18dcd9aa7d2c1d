"""The pages of docs/add are followed to the letter in a copy of the packages: what they add is checked and run.

The copy runs in processes of its own, on the tiny model. So do the tests that every kind of stage owes.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alignment.recipe import yaml_file
from tests.conftest import MakeRecipe
from tests.documented import ROOT, apply, blocks

ADD = ROOT / "docs" / "add"
PAGES = ("trainer", "metric", "reward", "judge")
COPIED = ("alignment", "flows", "preference_ui", "scripts", "docs")
LIKELIHOOD = {"kind": "likelihood", "model": "sft"}


@dataclass(frozen=True)
class Copy:
    """A copy of the packages with the pages' changes, and a recipe that uses all that they add."""

    root: Path
    recipe: Path

    def python(self, *arguments: str, code: int = 0) -> str:
        """What a Python process of the copy prints. It ends with ``code``."""
        ended = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": str(self.root)},
        )
        assert ended.returncode == code, f"{ended.stdout}\n{ended.stderr}"
        return ended.stdout

    def rlhf(self, *arguments: str) -> str:
        """What a command of the copy prints."""
        return self.python("-m", "flows.cli", *arguments, "--workspace", str(self.root / "workspace"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, make_recipe: MakeRecipe) -> Copy:
    root = tmp_path_factory.mktemp("added")
    for package in COPIED:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, root)
    for page in PAGES:
        apply(ADD / f"{page}.md", root)
    recipe = make_recipe(root / "recipe", stages=("sft", "responses", "preferences"))
    [shown] = [block for block in blocks(ADD / "trainer.md") if block.title == "bco.yaml"]
    written: dict[str, Any] = json.loads(recipe.read_text("utf-8"))
    written["stages"] |= yaml_file.parse(shown.text).value["stages"]
    written["stages"]["bco"]["epochs"] = 6  # one pass over so few pairs is one step, whose loss is the first
    written["stages"]["judged"] = {
        "kind": "judge", "responses": "responses", "calibration": "preferences", "judge": LIKELIHOOD,
    }  # fmt: skip
    written["stages"]["evaluation"] = {
        "kind": "evaluate", "model": "bco", "raters": {"rubric": "rubric.yaml"}, "metrics": ["lists"],
        "rewards": [{"kind": "asks"}], "sampling": {"temperature": 0.0, "max_new_tokens": 10}, "kl_prompts": 3,
    }  # fmt: skip
    written["gate"] = {"evaluation": "evaluation", "conditions": [{"metric": "kl", "below": 1000}]}
    recipe.write_text(json.dumps(written, indent=1), "utf-8")
    return Copy(root, recipe)


def test_what_the_pages_add_is_read_and_described(copy: Copy) -> None:
    """A recipe that uses all of it, by the copy's own loader; and a mistake in it, found as in any other kind."""
    program = (
        "import pathlib, sys\n"
        "from alignment.errors import InputError\n"
        "from alignment.recipe.load import load_recipe\n"
        "from alignment.checks.schema import recipe_schema\n"
        f"path = pathlib.Path({str(copy.recipe)!r})\n"
        "print([stage.kind for stage in load_recipe(path).stages.values()])\n"
        "try:\n    load_recipe(path, ['stages.bco.bet=1'])\n"
        "except InputError as error:\n    print(error)\n"
        "described = recipe_schema()['$defs']\n"
        "for name in ('BcoStage', 'AsksReward', 'Lists', 'LikelihoodJudge'):\n"
        "    assert all(entry['description'] for entry in described[name]['properties'].values()), name\n"
        "assert 'torch' not in sys.modules\n"
    )
    printed = copy.python("-c", program)
    assert "['sft', 'sample', 'preferences', 'bco', 'judge', 'evaluate']" in printed
    assert "did you mean beta?" in printed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_the_pages_add_is_checked_planned_run_and_reported(copy: Copy, prefect_server: str) -> None:
    assert "6 stages, nothing wrong" in copy.rlhf("check", str(copy.recipe))
    planned = json.loads(copy.rlhf("plan", str(copy.recipe), "--on", "L4", "--json"))
    stage = next(stage for stage in planned["stages"] if stage["name"] == "bco")
    assert stage["kind"] == "bco"
    assert stage["tokens_trained"] > 0
    assert "tiny-1 promoted" in copy.rlhf("run", str(copy.recipe))
    run = copy.root / "workspace" / "runs" / "tiny-1"
    report = json.loads((run / "report.json").read_text("utf-8"))
    bco = next(stage for stage in report["stages"] if stage["name"] == "bco")
    assert bco["metrics"]["gap"] > 0  # desirable answers became likelier than the others, by what they started from
    _step, first = report["curves"]["bco"]["loss"][0]
    assert first == pytest.approx(math.log(2), abs=1e-4)  # nothing has moved: each loss is -log σ(0)
    assert bco["metrics"]["mean_loss"] < first
    judged = next(stage for stage in report["stages"] if stage["name"] == "judged")
    assert -1 <= judged["metrics"]["kappa"] <= 1
    text = (run / "report.html").read_text("utf-8")
    assert f"rewards {bco['metrics']['gap']:.3f} apart" in text
    assert "lists" in text
    assert "asks" in text
    assert "cached" in copy.rlhf("run", str(copy.recipe))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_added_kind_owes_what_every_kind_owes(copy: Copy) -> None:
    """The conformance tests of the copy, but for the test that the page leaves to its reader; and its reference."""
    shutil.copytree(
        ROOT / "tests", copy.root / "tests", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
    )
    owed = "(bco and not tests_of_its_own) or floors or table_of_stages"
    ended = copy.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_architecture.py", "-k", owed)
    assert "passed" in ended
    # The folder of judges was full before: the pages warn of it, and of nothing else.
    full = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-vv", "tests/test_architecture.py", "-k", "too_many"]
    over = set(re.findall(r"'(alignment/[\w/]+)': 17", copy.python(*full, code=1)))
    assert over == {"alignment/judges"}
    copy.python("scripts/write_reference.py")
    assert "{ #BcoStage }" in (copy.root / "docs" / "reference" / "stages.md").read_text("utf-8")
    table = "table_of_stages"
    assert "passed" in copy.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_house.py", "-k", table)
