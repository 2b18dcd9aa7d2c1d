"""A small corpus of made sentences, and the contexts of the stages that read it."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from alignment.durable_files import folder_digest
from alignment.recipe.files import resolve_data
from alignment.recipe.load import load_recipe
from alignment.records import Artifact
from tests.contexts import RecipeContext, stage_context

MakeStage = Callable[..., RecipeContext]
TOKENIZER = {"kind": "tokenizer", "vocabulary": 400}
SHAPE = {"layers": 2, "width": 32, "heads": 2}
PRETRAIN = {
    "kind": "pretrain", "tokenizer": "tokenizer", "architecture": SHAPE, "learning_rate": 3e-3, "batch_size": 4,
    "max_length": 64, "held_out": 0.1, "checkpoint_every": 2,
}  # fmt: skip


def sentences(count: int = 160) -> list[str]:
    """Documents of two to five sentences, in the order of a seed."""
    draw = random.Random(0)
    things, colours = ("cat", "dog", "owl", "fox", "hen"), ("red", "blue", "white", "black")
    places = ("in the garden", "on the hill", "near the river", "under a tree")
    made = []
    for number in range(count):
        said = [
            f"The {draw.choice(colours)} {draw.choice(things)} sits {draw.choice(places)} "
            f"and sees {draw.randint(2, 9)} {draw.choice(things)}s."
            for _ in range(draw.randint(2, 5))
        ]
        made.append(f"Story {number}. " + " ".join(said))
    return made


def write_corpus(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), "utf-8")
    return path


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return sentences()


@pytest.fixture(scope="session")
def make_stage(documents: list[str]) -> MakeStage:
    """The context of the stage ``tokenizer`` or ``pretrain`` of a recipe that begins with nothing."""

    def make(
        folder: Path,
        name: str,
        inputs: Mapping[str, Artifact] | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        model: Mapping[str, Any] | None = None,
        texts: list[str] | None = None,
        **more: Any,
    ) -> RecipeContext:
        folder.mkdir(parents=True, exist_ok=True)
        write_corpus(folder / "corpus.jsonl", documents if texts is None else texts)
        stages = {"tokenizer": TOKENIZER, "pretrain": PRETRAIN}
        stages[name] = {key: value for key, value in {**stages[name], **(settings or {})}.items() if value is not None}
        recipe = {
            "name": "nothing", "model": {"dtype": "float32", **(model or {})}, "data": {"corpus": "corpus.jsonl"},
            "stages": stages, "resources": {"device": "cpu"},
        }  # fmt: skip
        path = folder / "recipe.yaml"
        path.write_text(json.dumps(recipe), "utf-8")
        loaded = load_recipe(path)
        for part in ("output", "checkpoints"):
            (folder / part).mkdir(exist_ok=True)
        data = resolve_data(loaded, path)
        return stage_context(name, loaded, inputs or {}, data, folder / "output", folder / "checkpoints", **more)

    return make


def artifact(name: str, kind: str, folder: Path) -> Artifact:
    return Artifact(name=name, kind=kind, version=1, digest=folder_digest(folder), path=str(folder), key=name)


@pytest.fixture(scope="session")
def tokenizer(make_stage: MakeStage, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tokenizer of the corpus."""
    from alignment.stages.pretraining.tokenizer import run

    context = make_stage(tmp_path_factory.mktemp("tokenizer"), "tokenizer")
    run(context.recipe.stages["tokenizer"], context)  # type: ignore[arg-type,union-attr]
    return artifact("tokenizer", "tokenizer", context.output)
