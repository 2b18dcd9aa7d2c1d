"""What is said of a recipe that makes its model, before anything is trained."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from alignment.checks.recipe import check_recipe
from alignment.errors import InputError
from alignment.plan.hardware import Machine
from alignment.plan.kinds.pretraining import compute_optimal
from alignment.plan.plan import make_plan
from alignment.plan.sizes import model_size
from alignment.plan.texts import Texts, TokenLengths
from alignment.recipe.base import MADE_BASE
from alignment.recipe.load import load_recipe
from alignment.recipe.resolved import resolve_recipe
from flows.recipe_source import RECIPES
from tests.alignment.pretraining.conftest import PRETRAIN, TOKENIZER, write_corpus

SFT = {"kind": "sft", "lora": None}
ON = {"kind": "pretrain", "model": "base"}


def faults(folder: Path, documents: list[str], **changes: Any) -> list[str]:
    """The faults of a recipe from nothing, each as its field and its problem."""
    write_corpus(folder / "corpus.jsonl", documents)
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(12)]
    (folder / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": "nothing", "data": {"corpus": "corpus.jsonl", "demonstrations": "demonstrations.jsonl"},
        "stages": {"tokenizer": TOKENIZER, "pretrain": PRETRAIN, "sft": {**SFT, "max_length": 64}},
    } | changes  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    try:
        return [f"{fault.field}: {fault.problem}" for fault in check_recipe(resolve_recipe(path))]
    except InputError as error:
        return [f"{fault.field}: {fault.problem}" for fault in error.faults]


def test_a_recipe_that_names_no_model_begins_with_the_one_that_it_makes(tmp_path: Path, documents: list[str]) -> None:
    assert faults(tmp_path, documents) == []
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.model.base == MADE_BASE
    assert faults(tmp_path, documents, model={"dtype": "float32"}) == []


def stages(*, first: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {**(first or {}), "tokenizer": TOKENIZER, "pretrain": PRETRAIN, **more}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stages": {"sft": SFT}}, "model: missing"),
        ({"model": {"base": MADE_BASE}, "stages": {"sft": SFT}}, "model.base: no stage of kind pretrain makes a model"),
        ({"model": {"base": "x/y"}}, "model.base: pretrain makes a model from nothing, and the recipe begins"),
        ({"model": {"revision": "main"}}, "model.revision: a revision of a hub's model"),
        ({"stages": stages(first={"sft": SFT})}, "stages.sft.model: no stage before it has made the model"),
        ({"stages": {"pretrain": PRETRAIN}}, "stages.pretrain.tokenizer: no stage tokenizer"),
        ({"stages": stages(tokenizer=PRETRAIN | {"tokenizer": "x"})}, "stages.tokenizer.tokenizer: no stage x"),
        ({"data": {}, "stages": stages()}, "data.corpus: not set, and the stage tokenizer reads it"),
        ({"stages": stages(pretrain=PRETRAIN | {"max_length": 50_000})}, "stages.pretrain.max_length: its "),
        ({"stages": stages(pretrain=PRETRAIN | {"router_loss": 0.1})}, "stages.pretrain.router_loss: llama computes"),
        ({"stages": stages(sft=SFT | {"max_length": 9, "lora": None})}, "None: the prompt has "),
        (
            {"stages": stages(sft=SFT, more={"kind": "sft", "model": "sft"})},
            "stages.more.lora: sft makes whole weights, and more would train an adapter",
        ),
        (
            {"stages": stages(sft={"kind": "sft"}, more={"kind": "pretrain", "model": "sft"})},
            "stages.more.model: sft makes an adapter, and pretraining trains all weights",
        ),
        (
            {"stages": stages(a={"kind": "sft"}, more=ON, z={"kind": "sft", "model": "a"})},
            "stages.z.model: a is an adapter on what base was before more made another",
        ),
        (
            {
                "stages": stages(pretrain=PRETRAIN | {"optimizer": "muon"}),
                "resources": {"workers": 2, "sharding": "fsdp", "device": "cpu"},
            },
            "stages.pretrain.optimizer: muon turns whole matrices",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_said(tmp_path: Path, documents: list[str], changes: dict[str, Any], said: str) -> None:
    found = faults(tmp_path, documents, **changes)
    assert any(one.startswith(said) for one in found), found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": None}, "a new model needs tokenizer and architecture"),
        ({"model": "base"}, "the model that reads on has its own tokenizer"),
        ({"architecture": {"layers": 1, "width": 30, "heads": 4}}, "4 heads of an even width do not make a width"),
        ({"architecture": {"layers": 1, "width": 32, "heads": 4, "key_value_heads": 3}}, "cannot share 3 heads"),
        ({"architecture": {"layers": 1, "width": 32, "heads": 4, "experts": 2, "experts_per_token": 3}}, "3 of 2"),
        ({"optimizer": "muon", "architecture": {"layers": 1, "width": 32, "heads": 4, "experts": 4}}, "stacks of them"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_together(
    tmp_path: Path, documents: list[str], changes: dict[str, Any], said: str
) -> None:
    found = faults(tmp_path, documents, stages={"tokenizer": TOKENIZER, "pretrain": {**PRETRAIN, **changes}})
    assert said in found[-1]


def test_one_document_is_too_few(tmp_path: Path) -> None:
    assert faults(tmp_path, ["Only this."])[0].endswith("a single document, so that none is held out")


MACHINE = Machine("box", 2**34, 1e12, 1e12, 1e11, share=0.5)


def test_compute_optimal_by_hand() -> None:
    """Half of 10¹² operations for an hour: C = 1.8e15, N = √(C / 120) = 3,872,983, D = 20 N."""
    best = compute_optimal(MACHINE, "float32", 1.0)
    assert best.flops == pytest.approx(1.8e15)
    assert best.parameters == 3_872_983
    assert best.tokens == pytest.approx(77_459_667, abs=20)
    assert 6 * best.parameters * best.tokens == pytest.approx(best.flops, rel=1e-6)


@pytest.mark.parametrize("experts", [None, 4])
def test_the_plan_counts_rows_and_parameters(tmp_path: Path, documents: list[str], experts: int | None) -> None:
    """Parameters by hand; 10,000 tokens of which a tenth is held out are 140 rows of 64."""
    from alignment.training.pretraining.architecture import new_config

    shape = PRETRAIN["architecture"] | ({} if experts is None else {"experts": experts})
    assert faults(tmp_path, documents, stages=stages(pretrain=PRETRAIN | {"architecture": shape})) == []
    recipe = load_recipe(tmp_path / "recipe.yaml")

    class Tokenizer:
        eos_token_id, pad_token_id = 2, 0

        def __len__(self) -> int:
            return 400

    size = model_size(new_config(recipe.stages["pretrain"].architecture, Tokenizer(), 64))  # type: ignore[attr-defined]
    attention, norms = 4 * 32 * 32, 2 * 32
    forward = 3 * 32 * 96 if experts is None else experts * 3 * 32 * 96 + experts * 32
    assert size.parameters == 400 * 32 + 2 * (attention + forward + norms) + 32
    texts = Texts(corpus=TokenLengths(100, (100,) * 100))
    [_tokenizer, plan] = make_plan(recipe, size, texts, [MACHINE], precision="float32")
    assert plan.tokens_trained == 140 * 64
    used = size.parameters if experts is None else size.parameters - 2 * 2 * 3 * 32 * 96
    assert f"N = {used:,} parameters" in plan.remarks[0]
    assert f"{20 * used:,} tokens" in plan.remarks[0]


def test_the_shipped_texts_are_what_the_script_makes() -> None:
    """And no held-out question is answered in the corpus or in a demonstration."""
    import gzip

    spec = importlib.util.spec_from_file_location("made", RECIPES.parents[1] / "scripts" / "write_from_scratch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.texts()
    for name, rows in made.items():
        data = (RECIPES / "from_scratch" / name).read_bytes()
        assert (gzip.decompress(data) if name.endswith(".gz") else data) == module.lines(rows), name
    asked = [row["prompt"] for row in made["held_out.jsonl"]]
    read = "\n".join(row["text"] for row in made["corpus.jsonl.gz"])
    assert not [question for question in asked if question in read]
    assert not set(asked) & {row["prompt"] for row in made["demonstrations.jsonl"] + made["prompts.jsonl"]}
