"""What changes a stage's key, and what does not: told by changing a copy of the code, or a file, and asking again."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.cache_key import data_digest, local_sources, stage_key
from alignment.recipe.files import resolve_data
from alignment.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]
ASK = (
    "import json\nfrom alignment.cache_key import code_digest\n"
    "from alignment.recipe.error_messages import STAGE_KINDS\n"
    "print(json.dumps({kind: code_digest(settings.spec.run) for kind, settings in STAGE_KINDS.items()}))"
)
MakeRecipe = Callable[..., Path]
EVALUATIONS = {"evaluate", "tournament"}
TRAINERS = {"sft", "reward", "pair_classifier", "dpo", "ppo", "grpo", "rloo"}


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    shutil.copytree(ROOT / "alignment", folder / "alignment", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def before(code: Path) -> dict[str, str]:
    return digests(code)


def digests(folder: Path) -> dict[str, str]:
    ended = subprocess.run(
        [sys.executable, "-c", ASK], cwd=folder, env={"PYTHONPATH": str(folder)}, check=True, capture_output=True
    )
    answer: dict[str, str] = json.loads(ended.stdout)
    return answer


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("recipe/metrics.py", "ngram: Count = 2", "ngram: Count = 3", EVALUATIONS),
        (
            "recipe/deployment.py",
            "class Deployment(Settings):",
            "class Deployment(Settings):\n    n: int = 0",
            set(),
        ),
        ("recipe/gate.py", "class Gate(Settings):", "class Gate(Settings):\n    more: int = 0", set()),
        ("report/words.py", "def percent(", "def per_cent(", set()),
        ("registry/card.py", "def _limits(", "def _limit(", set()),
        ("checks/graph.py", "def wiring_faults(", "def graph_faults(", set()),
        ("recipe/stages/ppo.py", "epochs: Count = 4", "epochs: Count = 3", {"ppo"}),
        ("recipe/stages/preference/dpo.py", "beta: Positive = 0.1", "beta: Positive = 0.2", {"dpo"}),
        ("stage.py", '"""What a stage is to the library', '"""What it is to the library', set()),
    ],
)
def test_a_change_of_code_reaches_the_stages_that_run_it(
    code: Path, before: dict[str, str], file: str, old: str, new: str, changed: set[str]
) -> None:
    path = code / "alignment" / file
    whole = path.read_text("utf-8")
    assert old in whole
    try:
        path.write_text(whole.replace(old, new, 1), "utf-8")
        after = digests(code)
    finally:
        path.write_text(whole, "utf-8")
    assert {kind for kind in before if before[kind] != after[kind]} == changed


def test_a_reward_counts_with_the_modules_that_it_imports(tmp_path: Path) -> None:
    helpers = tmp_path / "helpers"
    helpers.mkdir()
    (helpers / "__init__.py").write_text("")
    (helpers / "words.py").write_text("from helpers import lists\nGOOD = lists.GOOD\n")
    (helpers / "lists.py").write_text("GOOD = ('please',)\n")
    (tmp_path / "politeness.py").write_text("def score(text):\n    return text.count('please')\n")
    reward = tmp_path / "rewards.py"
    reward.write_text("import json\nimport numpy\nimport politeness\nfrom helpers.words import GOOD\n")
    assert {path.name for path in local_sources(reward)} == {
        "rewards.py", "politeness.py", "__init__.py", "words.py", "lists.py"
    }  # fmt: skip
    first = data_digest(reward)
    (tmp_path / "politeness.py").write_text("def score(text):\n    return -text.count('please')\n")
    second = data_digest(reward)
    (helpers / "lists.py").write_text("GOOD = ('thanks',)\n")
    third = data_digest(reward)
    (tmp_path / "unrelated.py").write_text("x = 1\n")
    assert len({first, second, third}) == 3
    assert data_digest(reward) == third


def test_a_helper_that_is_changed_gives_grpo_another_key(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "polite.py").write_text("from helper import sign\n\n\ndef polite(prompts, responses, references):\n"
                                        "    return [sign(text) for text in responses]\n")  # fmt: skip
    helper = tmp_path / "helper.py"
    helper.write_text("def sign(text):\n    return 1.0\n")
    grpo = {"kind": "grpo", "model": "base", "rewards": [{"kind": "function", "function": "polite.py:polite"}]}
    path = make_recipe(tmp_path, changes={"stages.grpo": grpo})
    recipe = load_recipe(path)

    def key() -> str:
        data = {name: file for name, file in resolve_data(recipe, path).items() if file.suffix == ".py"}
        assert len(data) == 1
        return stage_key("grpo", recipe.stages["grpo"], recipe.run_settings(), {}, data)

    before = key()
    helper.write_text("def sign(text):\n    return -1.0\n")
    assert key() != before


def test_a_loaded_reward_finds_what_lies_beside_it(tmp_path: Path) -> None:
    from alignment.recipe.rewards.user_function import FunctionReward
    from alignment.reward.user_function import function

    (tmp_path / "beside_it.py").write_text("VALUE = 0.25\n")
    path = tmp_path / "mine.py"
    path.write_text("from beside_it import VALUE\n\n\ndef mine(prompts, responses, references):\n    return [VALUE]\n")
    reward = function(FunctionReward(kind="function", function="mine.py:mine"), path)
    assert asyncio.run(reward([])) == [0.25]


def test_schedules_notices_and_other_stages_are_in_no_key(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    def keys(name: str, changes: dict[str, object]) -> dict[str, str]:
        recipe = load_recipe(make_recipe(tmp_path / name, changes=changes))
        run = recipe.run_settings()
        return {stage: stage_key(stage, settings, run, {}, {}) for stage, settings in recipe.stages.items()}

    before = keys("before", {})
    assert keys("clock", {"deployment.cron": "0 3 * * *", "deployment.retries": 3}) == before
    assert keys("notice", {"notify": {"on": ["failed"], "webhook": {"url_env": "HOOK_URL"}}}) == before
    assert keys("where", {"resources.max_failures": 7, "resources.stall_seconds": 60.0}) == before
    other = keys("dpo", {"stages.dpo.beta": 0.3})
    assert {stage for stage in before if before[stage] != other[stage]} == {"dpo"}
    assert all(before[stage] != changed for stage, changed in keys("seed", {"seed": 9}).items())


def test_a_stages_own_seed_counts_as_the_recipes_would(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Another seed of one stage is another key of that stage alone; the recipe's seed, written out, is none."""

    def keys(name: str, changes: dict[str, object]) -> dict[str, str]:
        recipe = load_recipe(make_recipe(tmp_path / name, changes=changes))
        return {
            stage: stage_key(stage, settings, recipe.run_settings(settings), {}, {})
            for stage, settings in recipe.stages.items()
        }

    before = keys("before", {})
    assert keys("the same", {"stages.dpo.seed": 5}) == before  # the recipe's seed is 5
    other = keys("another", {"stages.dpo.seed": 6})
    assert {stage for stage in before if before[stage] != other[stage]} == {"dpo"}
    assert other["dpo"] == keys("of all", {"seed": 6})["dpo"]
