"""The documentation is true: commands exist, recipes are read, programs run, the reference is of today's settings."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.recipe import yaml_file
from alignment.recipe.load import load_recipe
from tests.conftest import MakeRecipe
from tests.documented import ROOT, blocks, command_faults, commands, pages

MINIMAL: dict[str, Any] = {"name": "documented", "model": {"base": "embedded:smollm2-135m"}}
STAGE = {"first": {"kind": "sample"}}


def ids(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *pages()], ids=ids)
def test_documented_commands_exist(page: Path) -> None:
    assert command_faults(commands(page)) == []


def test_commands_are_looked_for_where_they_are() -> None:
    """The check is not empty, and finds what is wrong."""
    shown = {page.name: len(commands(page)) for page in [ROOT / "README.md", *pages()]}
    assert shown["README.md"] > 20
    assert sum(shown.values()) > 80
    wrong = [
        "rlhf runn quickstart",
        "rlhf run quickstart --fast",
        "rlhf run no_such_recipe",
        "make love",
        "rlhf models",
    ]
    assert len(command_faults(wrong)) == len(wrong)
    assert (
        command_faults(["make quickstart", "rlhf run quickstart --set a.b=1  # a comment", "rlhf schema > file"]) == []
    )


def recipes() -> list[tuple[str, str]]:
    """Each piece of a recipe in the documentation, with where it stands."""
    found = [
        (f"{page.name}-{number}", block.text)
        for page in pages()
        for number, block in enumerate(blocks(page))
        if block.language == "yaml" and block.title == "recipe"
    ]
    assert len(found) > 6
    return found


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in recipes()])
def test_documented_recipes_are_read(text: str, tmp_path: Path) -> None:
    piece = yaml_file.parse(text).value
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml_file.dump(MINIMAL | ({} if "stages" in piece else {"stages": STAGE}) | piece), "utf-8")
    recipe = load_recipe(path)
    assert set(piece) <= set(recipe.model_fields_set)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *pages()], ids=ids)
def test_documented_files_are_there(page: Path) -> None:
    paths = re.findall(
        r"`((?:alignment|flows|preference_ui|tests|infra|scripts|docs)/[\w/.-]*)`", page.read_text("utf-8")
    )
    own = {block.title for block in blocks(page) if block.language == "python"}
    assert [path for path in paths if path not in own and not (ROOT / path).exists()] == []


def bound_names(source: str) -> set[str]:
    """The names that a module's source binds at its top level."""
    names: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return names


def test_documented_programs_import_what_there_is() -> None:
    """A renamed class or a moved function shows here at once, and not only where the pages are followed for minutes."""
    shown = [block for page in pages() for block in blocks(page) if block.language == "python"]
    own = {block.title: block.text for block in shown if block.title}
    added = "\n".join(block.text for page in pages() for block in blocks(page) if block.language == "diff")
    wrong, imported = [], 0
    for block in shown:
        for node in ast.walk(ast.parse(block.text)):
            if not (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "alignment"):
                continue
            path = f"{str(node.module).replace('.', '/')}.py"
            text = own.get(path) or ((ROOT / path).read_text("utf-8") if (ROOT / path).exists() else "")
            folder = {path.stem for path in (ROOT / path).with_suffix("").glob("*.py")}
            names = bound_names(text) | folder | set(re.findall(r"^\+class (\w+)", added, re.MULTILINE))
            imported += len(node.names)
            wrong += [f"{block.title}: {node.module}.{alias.name}" for alias in node.names if alias.name not in names]
    assert imported > 30
    assert wrong == []


def test_the_reference_is_of_todays_settings() -> None:
    program = (
        "import runpy, pathlib\nmodule = runpy.run_path('scripts/write_reference.py')\n"
        "pages = module['Reference'](module['recipe_schema']()).pages()\n"
        "folder = module['FOLDER']\n"
        "assert {path.name for path in folder.glob('*.md')} == set(pages)\n"
        "old = [name for name, text in pages.items() if (folder / name).read_text('utf-8') != text]\n"
        "assert old == [], f'make reference: {old}'\n"
        "print(sum(text.count('\\n| `') for text in pages.values()))"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 400  # rows: the settings but `kind`, which is a section's heading


def test_every_page_is_in_the_navigation_and_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    configuration = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    listed = re.findall(r"[\w/-]+\.md", str(configuration["nav"]))
    assert sorted(listed) == sorted(
        path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")
    )
    ended = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert "WARNING" not in ended.stderr
    page = (tmp_path / "site" / "reference" / "stages.html").read_text("utf-8")
    assert 'id="DpoStage"' in page
    fetched = re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"(https?:[^\"]+)", page)
    assert fetched == []


def test_the_python_page_runs_without_prefect_or_ray(tiny_model: Path, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """All of its programs, one after another in one process, on the tiny model."""
    data = make_recipe(tmp_path / "data").parent / "demonstrations.jsonl"
    programs = {block.title: block.text for block in blocks(ROOT / "docs" / "python.md") if block.language == "python"}
    assert set(programs) == {"sft.py", "answer.py", "figures.py"}
    for name, text in programs.items():
        assert name is not None
        (tmp_path / name).write_text(text, "utf-8")
    folder = tmp_path / "out"
    given = {
        "sft.py": [str(tiny_model), str(data), str(folder)],
        "answer.py": [str(tiny_model), str(folder), "What colour is the cat?"],
        "figures.py": [],
    }
    driver = "import runpy, sys\n" + "".join(
        f"sys.argv = {[name, *arguments]!r}\nrunpy.run_path({name!r}, run_name='__main__')\n"
        for name, arguments in given.items()
    )
    driver += "assert not {'prefect', 'ray', 'mlflow', 'flows'} & set(sys.modules)\n"
    ended = subprocess.run(
        [sys.executable, "-c", driver],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert "6/6" in ended.stdout  # 12 demonstrations, 4 in a batch, two epochs
    assert (folder / "sft" / "adapter_model.safetensors").exists()
    assert any(line.startswith("model {") and "'demonstrations': 12.0" in line for line in lines)
    assert "win rate 0.75, 95 % interval" in ended.stdout  # (5 + 2 / 2) / 8
    assert "kappa 0.5" in ended.stdout  # 3 of 4 agree, 1/2 by chance: (3/4 - 1/2) / (1 - 1/2)
