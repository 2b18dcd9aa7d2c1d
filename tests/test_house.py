"""The house keeps its own rules: imports, lock file, light commands, recipes, README, and what lies at its top."""

import ast
import os
import re
import resource
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

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
    ".ci", ".gitignore", ".pre-commit-config.yaml", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile",
    "README.md", "alignment", "docs", "flows", "infra", "mkdocs.yml", "preference_ui", "pyproject.toml",
    "requirements.lock", "scripts", "tests",
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
    allowed = ("alignment.records", "alignment.preferences", "alignment.errors", "alignment.plain_text")
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
    # vLLM wants a machine of its own; reasoning-gym pins versions of what others need newer.
    free = ("gpu", "reasoning-gym")
    direct += [line for extra, lines in project["optional-dependencies"].items() if extra not in free for line in lines]
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
    light = (
        "recipe.resolved",
        "records",
        "workspace",
        "errors",
        "stage",
        "digests",
        "checks.graph",
        "checks.recipe",
        "checks.schema",
    )
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


def test_the_readmes_map_matches_the_tree() -> None:
    _before, _heading, text = (ROOT / "README.md").read_text("utf-8").partition("## The map of the house")
    block = [line for line in text.splitlines() if line.startswith("    ")]
    named: dict[str, list[str]] = {}
    top = ""
    for line in block:
        names = re.findall(r"(?:^|\s)([\w.]+(?:/|\.py))(?=\s|$)", line)
        if not line.startswith("     "):  # a first-level folder
            top = names.pop(0)
        named.setdefault(top, []).extend(names)
    absent = [f"{top}{name}" for top, names in named.items() for name in names if not (ROOT / top / name).exists()]
    assert absent == []
    folders = {name.rpartition("/")[0] for name in tracked() if "/" in name and not name.startswith(".")}
    assert {f"{name.split('/')[0]}/" for name in folders} == set(named)
    for package in PACKAGES:
        inside = {f"{name.split('/')[1]}/" for name in folders if name.startswith(f"{package}/")}
        assert inside - set(named[f"{package}/"]) == set()


def test_the_readme_is_for_a_newcomer() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 200
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link


def test_the_readmes_table_of_stages_is_the_folder_of_stages() -> None:
    from alignment.recipe.error_messages import STAGE_KINDS

    rows = re.findall(
        r"^\| (`[^|]+`) \| \[`(alignment/stages/[\w/]+\.py)`\]\((\S+)\) \|",
        (ROOT / "README.md").read_text("utf-8"),
        re.MULTILINE,
    )
    stages = [path for path in (ROOT / "alignment" / "stages").rglob("*.py") if path.name != "__init__.py"]
    assert {shown for _kinds, shown, _link in rows} == {path.relative_to(ROOT).as_posix() for path in stages}
    assert all(shown == link for _kinds, shown, link in rows)
    listed = {kind: shown for kinds, shown, _link in rows for kind in re.findall(r"`(\w+)`", kinds)}
    assert listed == {kind: settings.spec.run.replace(".", "/") + ".py" for kind, settings in STAGE_KINDS.items()}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_say_that_they_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]
    assert {"py.typed", "**/*"} & set(shipped[package])


def test_ci_runs_the_test_command_and_nothing_less() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text("utf-8").rstrip().endswith("make test")
