"""The house keeps its own rules: imports, lock file, light commands, recipes, README, and what lies at its top."""

import ast
import os
import re
import resource
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("alignment", "flows", "preference_ui")
HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "prefect",
    "mlflow",
    "gradio",
    "ray",
    "matplotlib",
    "pandas",
)
TOP = {
    ".ci", ".gitignore", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "alignment", "flows", "infra",
    "preference_ui", "pyproject.toml", "requirements.lock", "scripts", "tests",
}  # fmt: skip
HELP_SECONDS = 0.5


def modules(package: str) -> Iterator[tuple[str, str]]:
    """(file, imported module) for every import in a package, wherever in the file it stands."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            file = path.relative_to(ROOT).as_posix()
            if isinstance(node, ast.Import):
                yield from ((file, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: imports are absolute"
                yield from ((file, f"{node.module}.{alias.name}") for alias in node.names)


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("alignment", ("prefect", "prefect_ray", "ray", "gradio", "flows", "preference_ui")),
        ("preference_ui", ("ray", "flows", "torch", "transformers", "trl", "peft")),
        ("flows", ("gradio",)),
    ],
)
def test_packages_import_only_what_they_may(package: str, forbidden: tuple[str, ...]) -> None:
    wrong = [(file, name) for file, name in modules(package) if name.split(".")[0] in forbidden]
    assert wrong == []


def test_the_app_knows_records_and_preferences_alone() -> None:
    allowed = ("alignment.records", "alignment.preferences", "alignment.errors")
    ours = [(file, name) for file, name in modules("preference_ui") if name.split(".")[0] == "alignment"]
    assert [item for item in ours if not item[1].startswith(allowed)] == []


def test_ray_is_imported_in_one_place() -> None:
    places = {file for package in PACKAGES for file, name in modules(package) if name.split(".")[0] == "ray"}
    assert places == {file for file in places if file.startswith("flows/cluster/")} != set()


def test_every_direct_dependency_is_locked_inside_its_bounds() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lock = ROOT / "requirements.lock"
    if not lock.exists():
        pytest.skip("no requirements.lock yet: make lock")
    pinned: dict[str, str] = {}
    for line in lock.read_text("utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            [pin] = requirement.specifier
            assert pin.operator == "==", line
            pinned[canonicalize_name(requirement.name)] = pin.version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    direct = [*project["dependencies"]]
    direct += [line for extra, lines in project["optional-dependencies"].items() if extra != "gpu" for line in lines]
    wrong = []
    for line in direct:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        version = pinned.get(canonicalize_name(requirement.name))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{line}: locked {version}")
    assert len(direct) > 30
    assert wrong == []


def test_fastapi_stays_below_what_prefect_cannot_start_with() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert any(re.fullmatch(r"fastapi<0\.1[0-5]\d", line) for line in project["dependencies"])


def cpu_seconds(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_help_is_light() -> None:
    """CPU time above bare Python's; the least of several pairs, because a busy machine only ever adds."""
    cpu_seconds("-m", "flows.cli", "--help")  # writes the byte code
    above = [cpu_seconds("-m", "flows.cli", "--help") - cpu_seconds("-c", "pass") for _ in range(5)]
    assert min(above) <= HELP_SECONDS, f"{min(above):.2f} s"


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["models", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom flows.cli import main\n"
        f"sys.argv = ['rlhf', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print(sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ended.stderr.strip() == "[]"
    assert "Usage" in ended.stdout


def test_the_light_modules_import_nothing_heavy() -> None:
    light = ("recipe.resolved", "records", "workspace", "errors", "stage", "digests", "checks.graph", "checks.recipe")
    program = "import sys\n" + "".join(f"import alignment.{name}\n" for name in light)
    program += f"print(sorted(set(sys.modules) & set({HEAVY!r})))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted((ROOT / "flows" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_parses_and_fits_together(path: Path) -> None:
    from alignment.checks.graph import wiring_faults
    from alignment.recipe.load import dump_recipe, load_recipe

    recipe = load_recipe(path)
    assert wiring_faults(recipe) == []
    assert recipe.description
    assert dump_recipe(recipe)


def test_the_top_holds_what_the_house_allows() -> None:
    assert {name.split("/")[0] for name in tracked()} <= TOP


def test_no_file_knows_where_it_was_written() -> None:
    paths = re.compile(r"(?<![\w./-])/(?:work|root|home|Users)/\w[\w./-]*")
    wrong = []
    for name in tracked():
        data = (ROOT / name).read_bytes()
        if b"\0" in data[:1000]:
            continue
        found = paths.findall(data.decode("utf-8", "replace"))
        wrong += [(name, path) for path in found]
    assert wrong == []


def readme_commands() -> list[str]:
    """Every line of README's code blocks, and every piece of inline code, that is an rlhf or make command."""
    text = (ROOT / "README.md").read_text("utf-8")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    pieces = [*lines, *re.findall(r"`([^`\n]+)`", text)]
    commands = [piece.removeprefix(".venv/bin/") for piece in pieces]
    return [command for command in commands if re.match(r"(rlhf|make) [a-z]", command)]


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="no README yet")
def test_the_readmes_commands_exist() -> None:
    import typer.main

    from flows.cli import app
    from flows.recipe_source import RECIPES

    program: Any = typer.main.get_command(app)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    commands = readme_commands()
    assert len([command for command in commands if command.startswith("rlhf")]) > 8
    wrong = []
    for command in commands:
        kind, *words = shlex.split(command, comments=True)
        if kind == "make":
            wrong += [command for word in words if word not in targets]
            continue
        inside = program
        while words and hasattr(inside, "commands"):
            inside = inside.commands.get(words.pop(0))
            if inside is None:
                break
        if inside is None or hasattr(inside, "commands"):
            wrong.append(command)
            continue
        known = {name for parameter in inside.params for name in parameter.opts}
        wrong += [f"{command}: {word}" for word in words if word.startswith("-") and word not in known]
        if inside.name in ("run", "check") and words and re.fullmatch(r"[a-z_]+", words[0]):
            wrong += [] if (RECIPES / f"{words[0]}.yaml").exists() else [f"{command}: no shipped recipe {words[0]}"]
    assert wrong == []


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="no README yet")
def test_the_readmes_map_matches_the_tree() -> None:
    _before, _heading, text = (ROOT / "README.md").read_text("utf-8").partition("## The map of the house")
    block = [line for line in text.splitlines() if line.startswith("    ")]
    wrong, seen, top = [], set(), ROOT
    for line in block:
        names = re.findall(r"(?:^|\s)([\w.]+(?:/|\.py))(?=\s|$)", line)
        if not line.startswith("     "):  # a first-level folder
            top = ROOT / names[0]
            seen.add(names.pop(0).rstrip("/"))
        wrong += [f"{top.name}/{name}" for name in names if not (top / name).exists()]
    assert wrong == []
    assert {"alignment", "flows", "preference_ui", "tests"} <= seen
    inside = {path.name for path in (ROOT / "alignment").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert [name for name in sorted(inside) if f" {name}/" not in text] == []


def test_ci_runs_the_test_command_and_nothing_less() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text("utf-8").rstrip().endswith("make test")
