"""The floors of the house, and what each kind of stage owes to the rest of it."""

import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from alignment.cache_key import code_modules
from alignment.plan.stages import WORK
from alignment.recipe.error_messages import STAGE_KINDS
from alignment.recipe.stages.spec import StageSettings
from alignment.report.words import HEADLINES, headline_metrics

ROOT = Path(__file__).parents[1]
PACKAGES = ("alignment", "flows", "preference_ui")
MOST_MODULES = 16  # in a folder
MOST_COMMON = 10  # modules that lie in every stage's cache key
KINDS = sorted(STAGE_KINDS)


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    return subprocess.run(
        command, check=False, cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(folder)}
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages without what is not Python, to be broken."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for path in sources():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


def test_the_house_keeps_its_floors(copy: Path) -> None:
    ended = lint(copy)
    assert ended.returncode == 0, ended.stdout
    assert "0 broken" in ended.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("alignment/data/split.py", "import flows.runs", "flows stands on preference_ui"),
        ("alignment/evaluation/ratings.py", "import alignment.stages.dpo", "the floors of alignment"),
        ("alignment/stages/sample.py", "import alignment.recipe.recipe", "the floors of alignment"),
        ("alignment/stages/dpo.py", "from alignment.stages import sft", "no stage imports another"),
        (
            "alignment/stages/feedback/judge.py",
            "from alignment.stages.feedback import synthesis",
            "no stage that makes preferences imports another",
        ),
        (
            "alignment/compression/agreement.py",
            "import alignment.stages.compression.quantise",
            "the floors of alignment",
        ),
        ("flows/services/servers.py", "import flows.commands.run", "the floors of flows"),
        ("preference_ui/store/store.py", "import preference_ui.web.middleware", "the floors of preference_ui"),
        ("alignment/data/pairing.py", "import alignment.data.preferences", "no circle of imports"),
    ],
)
def test_each_floor_says_when_it_is_broken(copy: Path, file: str, line: str, contract: str) -> None:
    path = copy / file
    whole = path.read_text("utf-8")
    try:
        path.write_text(f"{whole}\n{line}\n", "utf-8")
        ended = lint(copy)
    finally:
        path.write_text(whole, "utf-8")
    assert ended.returncode == 1
    assert contract in ended.stdout.partition("Broken contracts")[2].replace("\n", " ")


def test_no_folder_holds_too_many_modules() -> None:
    folders = Counter(path.parent.relative_to(ROOT).as_posix() for path in sources() if path.name != "__init__.py")
    assert {folder: count for folder, count in folders.items() if count > MOST_MODULES} == {}


def test_no_class_has_two_meanings() -> None:
    places: dict[str, list[str]] = {}
    for path in sources():
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_nobody_outside_the_specs_asks_what_class_a_stage_is_of() -> None:
    """Only alignment/recipe says what a stage is: elsewhere neither ``isinstance`` nor ``getattr`` of one."""
    classes = {settings.__name__ for settings in STAGE_KINDS.values()} | {
        "Training", "OnlineStage", "GroupStage", "StageSettings",
    }  # fmt: skip
    wrong = []
    for path in sources():
        if path.is_relative_to(ROOT / "alignment" / "recipe"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id == "isinstance":
                asked = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
                wrong += [f"{path}:{node.lineno}"] if asked & classes else []
            elif node.func.id in ("getattr", "hasattr") and isinstance(node.args[0], ast.Name):
                wrong += [f"{path}:{node.lineno}"] if node.args[0].id in ("stage", "settings") else []
    assert wrong == []


# What each kind of stage owes


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_a_typed_run(kind: str) -> None:
    settings = STAGE_KINDS[kind]
    run = importlib.import_module(settings.spec.run).run
    hints = get_type_hints(run)
    first, second = inspect.signature(run).parameters.values()
    accepted = get_args(hints[first.name]) or (hints[first.name],)
    assert any(issubclass(settings, one) for one in accepted), f"{settings.__name__} is not {hints[first.name]}"
    assert hints[second.name].__name__ == "StageContext"
    assert hints["return"].__name__ == "StageResult"
    assert settings.spec.run.startswith("alignment.stages.")


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_a_plan_a_headline_and_a_description(kind: str) -> None:
    settings = STAGE_KINDS[kind]
    assert kind in WORK
    assert (settings.__doc__ or "").strip().endswith(".")
    if kind != "evaluate":  # its headline is a win rate, whose name holds the opponent's
        assert headline_metrics(kind)
        assert set(headline_metrics(kind)) <= set(HEADLINES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_reads_only_roles_that_its_settings_have(kind: str) -> None:
    settings = STAGE_KINDS[kind]
    nested = {"writer", "judge", "judge_reward", "judge_classifier", "rewards", "calibrated_by"}
    assert set(settings.spec.reads) - nested <= set(settings.model_fields)
    assert set(settings.spec.champion_roles) <= set(settings.spec.reads)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_tests_of_its_own(kind: str) -> None:
    """A test module names the kind's ``run``, or runs a recipe that has such a stage."""
    module = STAGE_KINDS[kind].spec.run
    texts = (path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    wanted = re.compile(rf"{re.escape(module)}\b|[\"']kind[\"']: [\"']{kind}[\"']")
    assert any(wanted.search(text) for text in texts)


def test_the_folder_of_stages_is_the_table_of_stages() -> None:
    modules = {path.stem for path in (ROOT / "alignment" / "stages").rglob("*.py")} - {"__init__"}
    assert modules == {settings.spec.run.rpartition(".")[2] for settings in STAGE_KINDS.values()}


# What a cache key holds


def test_few_modules_lie_in_every_key() -> None:
    keys = [set(code_modules(settings.spec.run)) for settings in STAGE_KINDS.values()]
    common = set.intersection(*keys)
    assert len(common) <= MOST_COMMON, sorted(common)
    foreign = ("stages.", "metrics", "rewards", "gate", "judges", "deployment", "graph")
    foreign = tuple(f"alignment.recipe.{name}" for name in foreign)
    assert [name for name in common if name.startswith(foreign)] == ["alignment.recipe.stages.spec"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_key_holds_another_kinds_settings_or_stage(kind: str) -> None:
    module, settings = STAGE_KINDS[kind].spec.run, STAGE_KINDS[kind]
    held = set(code_modules(module))
    shared = {
        f"alignment.recipe.stages.{name}" for name in ("spec", "adapters", "training", "online", "environment")
    } | {settings.__module__}
    shared |= {base.__module__ for base in settings.__mro__ if issubclass(base, StageSettings)}
    assert {name for name in held if name.startswith("alignment.recipe.stages.")} <= shared
    ours = {module, module.rpartition(".")[0], "alignment.stages"}
    assert {name for name in held if name.startswith("alignment.stages.")} <= ours
    for never in (
        "alignment.recipe.recipe",
        "alignment.recipe.deployment",
        "alignment.recipe.gate",
        "alignment.report",
    ):
        assert never not in held


TRAINERS = ("sft", "reward", "dpo", "ppo", "grpo", "rloo", "pair_classifier")


@pytest.mark.parametrize(
    ("module", "kinds"),
    [
        ("alignment.recipe.metrics", TRAINERS),
        ("alignment.metrics.text_metrics", TRAINERS),
        ("alignment.recipe.deployment", tuple(KINDS)),
        ("alignment.recipe.gate", tuple(KINDS)),
        ("alignment.recipe.rewards.components", ("sft", "reward", "dpo", "pair_classifier")),
        ("alignment.recipe.stages.ppo", ("sft", "reward", "dpo", "grpo", "evaluate")),
    ],
)
def test_a_change_there_retrains_nothing(module: str, kinds: tuple[str, ...]) -> None:
    assert [kind for kind in kinds if module in code_modules(STAGE_KINDS[kind].spec.run)] == []


def test_the_recipe_can_be_read_without_torch() -> None:
    program = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'transformers', 'trl', 'peft', 'prefect', 'ray', 'gradio'}:\n"
        "            raise AssertionError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import alignment.recipe.resolved, alignment.recipe.error_messages, alignment.cache_key\n"
        "import alignment.checks.graph\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
