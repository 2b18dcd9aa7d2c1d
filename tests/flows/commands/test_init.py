"""``rlhf init``: what it writes passes the check, and where it cannot write it writes nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.models.embedded import EMBEDDED
from alignment.recipe.load import load_recipe
from flows.recipe_source import RECIPES
from tests.flows.conftest import call

MakeRecipe = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_recipe: MakeRecipe) -> Path:
    """Where the user stands, with data of theirs in ``data/`` and preferences in the spelling of TRL."""
    data = make_recipe(tmp_path / "data").parent
    pairs = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No."} for n in range(30)]
    (data / "pairs: mine.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    monkeypatch.chdir(tmp_path)
    return tmp_path


CASES = {
    "prompts": (["--prompts", "data/prompts.jsonl"], ["responses", "preferences", "reward", "dpo", "evaluation"]),
    "prompts and demonstrations": (
        ["--prompts", "data/prompts.jsonl", "--demonstrations", "data/demonstrations.jsonl"],
        ["sft", "responses", "preferences", "reward", "dpo", "evaluation"],
    ),
    "preferences": (["--preferences", "data/pairs: mine.jsonl"], ["preferences", "reward", "dpo", "evaluation"]),
    "all of it": (
        ["--prompts", "data/prompts.jsonl", "--demonstrations", "data/demonstrations.jsonl",
         "--preferences", "data/pairs: mine.jsonl"],
        ["sft", "preferences", "reward", "dpo", "evaluation"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_check_passes_on_it(folder: Path, tiny_model: Path, case: str) -> None:
    options, stages = CASES[case]
    ended = call("init", "mine", "--model", tiny_model, *options)
    assert (ended.code, ended.err) == (0, "")
    recipe = load_recipe(Path("mine.yaml"))
    assert list(recipe.stages) == stages
    assert recipe.model.base == str(tiny_model)
    given = {option.removeprefix("--"): value for option, value in zip(options[::2], options[1::2], strict=True)}
    assert {name: getattr(recipe.data, name) for name in given} == given
    assert (folder / "mine").exists() == ("preferences" not in given)  # the rubric of simulated raters
    checked = call("check", "mine.yaml", "-w", folder / "w")
    assert (checked.code, checked.err) == (0, "")
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_without_anything_it_brings_small_data(folder: Path) -> None:
    import importlib.metadata

    ended = call("init", "starter", "--json")
    assert ended.code == 0
    said = json.loads(ended.out)
    assert said["recipe"] == "starter.yaml"
    assert set(said["data"]) == {"starter/prompts.jsonl", "starter/demonstrations.jsonl", "starter/rubric.yaml"}
    assert all((folder / name).is_file() for name in said["data"])
    assert [line.rpartition("rlhf ")[2] for line in said["next"]] == [
        "check starter.yaml", "plan starter.yaml", "run starter.yaml",
    ]  # fmt: skip
    text = (folder / "starter.yaml").read_text()
    assert text.count("#") > 20  # commented
    assert text.splitlines()[0] == f"# yaml-language-server: $schema={(RECIPES / 'recipe.schema.json').as_uri()}"
    assert yaml.safe_load(text)["model"]["base"] == "embedded:smollm2-135m"
    try:
        importlib.metadata.distribution(EMBEDDED["smollm2-135m"])
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the embedded model is not installed: make quickstart")
    assert call("check", "starter.yaml", "-w", folder / "w").code == 0


def test_held_out_prompts_of_their_own_are_a_line_to_uncomment(folder: Path, tiny_model: Path) -> None:
    """The check counts them, duplicates apart, and says who asks them."""
    assert call("init", "mine", "--model", tiny_model, "--prompts", "data/prompts.jsonl").code == 0
    recipe = folder / "mine.yaml"
    recipe.write_text(recipe.read_text().replace("# held_out_prompts:", "held_out_prompts:"))
    rows = ["Who is it?", "Where is it?", "Who is it?"]
    (folder / "final.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    checked = call("check", "mine.yaml", "-w", folder / "w")
    line = "data.held_out_prompts: 2 prompts, asked by evaluation; 1 of its rows are duplicates and left out"
    assert (checked.code, checked.err) == (0, "")
    assert line in " ".join(checked.out.split())
    shutil.copy(folder / "data" / "prompts.jsonl", folder / "final.jsonl")
    refused = call("check", "mine.yaml", "-w", folder / "w")
    assert refused.code == 2
    assert "final.jsonl:1:prompt: held out here, and the same prompt is row 1 of" in refused.err


def test_a_model_beside_the_recipe_stays_beside_it(folder: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, folder / "my model")
    assert call("init", "mine", "--model", "my model", "--prompts", "data/prompts.jsonl").code == 0
    assert load_recipe(Path("mine.yaml")).model.base == "./my model"


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["Mine"], ["NAME: 'Mine' is not a recipe's name; begin with a lower-case letter; "]),
        (["taken"], ["NAME: taken.yaml is there already; remove it, or choose another name"]),
        (["mine", "--model", "embedded:smolm2-135m"],
         ["--model: no embedded model 'smolm2-135m'; did you mean smollm2-135m?"]),
        (["mine", "--model", "./nowhere", "--prompts", "none.jsonl", "--preferences", "data/tiny.yaml"],
         ["--model: no folder ./nowhere; ", "none.jsonl: no such file; ", "data/tiny.yaml: "]),
        (["mine", "--prompts", "data/broken.jsonl"], ["data/broken.jsonl:2: "]),
    ],
)  # fmt: skip
def test_faults_all_at_once_and_nothing_written(folder: Path, arguments: list[Any], lines: list[str]) -> None:
    (folder / "taken.yaml").write_text("name: taken\n")
    (folder / "data" / "broken.jsonl").write_text('{"prompt": "What?"}\n{"prompt": \n')
    before = sorted(folder.rglob("*"))
    ended = call("init", *arguments)
    assert ended.code == 2
    said = ended.err.splitlines()
    assert len(said) == len(lines)
    assert all(line.startswith(start) for line, start in zip(said, lines, strict=True)), said
    assert sorted(folder.rglob("*")) == before
