"""What `rlhf check` says of a recipe on an encoder-decoder: which stages take it, and what was seen of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from alignment.chat import load_tokenizer
from alignment.checks.recipe import check_recipe
from alignment.checks.seq2seq.faults import encoder_decoder_faults
from alignment.checks.seq2seq.notice import encoder_decoder_notice
from alignment.recipe.error_messages import STAGE_KINDS
from alignment.recipe.recipe import Recipe
from alignment.recipe.resolved import resolve_recipe
from alignment.recipe.resources import Resources
from alignment.recipe.run_settings import ModelSettings
from alignment.reward.outside_model import reward_model_problem
from tests.conftest import RUBRIC, demonstration_rows, prompt_rows
from tests.tiny_encoders import write_encoder
from tests.tiny_seq2seq import FAMILIES, write_seq2seq

PAIRS = [{"prompt": f"Which {n}?", "chosen": "Red.", "rejected": "Who saw it?"} for n in range(40)]
SAMPLE = {"kind": "sample", "per_prompt": 2, "sampling": {"max_new_tokens": 8}}
REWARDS = [{"kind": "length", "at_most": 5}]
PRINCIPLE = {"name": "brief", "critique": "Criticise it.", "revision": "Revise it."}
RATERS = {"rubric": "rubric.yaml"}
ON_PAIRS = {"model": "base", "preferences": "pairs"}
GIVEN: dict[str, dict[str, Any]] = {  # settings of each kind that is given the base as a policy
    "pair_classifier": {"preferences": "pairs"},
    "reward": ON_PAIRS,
    "kto": ON_PAIRS,
    "simpo": ON_PAIRS,
    "orpo": ON_PAIRS,
    "grpo": {"model": "base", "rewards": REWARDS},
    "rloo": {"model": "base", "rewards": REWARDS},
    "ppo": {"model": "base", "rewards": REWARDS},
    "distil": {"teacher": "base"},
    "quantise": {"model": "base", "scheme": "int8"},
    "pretrain": {"model": "base"},
    "benchmark": {"tasks": {"sums": {"questions": "sums.jsonl", "answer": "number"}}},
    "tournament": {"model": "base", "policies": ["one", "two"], "raters": RATERS},
    "overoptimisation": {"model": "base", "policies": ["one"], "reward": "reward", "raters": RATERS},
    "synthesis": {"models": ["base"], "principles": {"brief": "Be brief."}},
    "constitution": {"responses": "answers", "writer": {"model": "base"}, "principles": [PRINCIPLE]},
}  # fmt: skip
NO_POLICY = {
    "tokenizer", "preferences", "human_preferences", "preference_file", "judge", "rejection_sampling",
    "outside_model",  # whose own model is looked at: test_check_outside_models
}  # fmt: skip
TAKES = {"sft", "dpo", "sample", "evaluate"}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seq2seq(tmp_path_factory.mktemp("model") / request.param, request.param)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seq2seq(tmp_path_factory.mktemp("model") / "t5", "t5")


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe of these parts with data of every kind beside it."""

    def write(base: Path, stages: dict[str, Any], **parts: Any) -> Path:
        rows = {"prompts": prompt_rows(), "demonstrations": demonstration_rows(), "preferences": PAIRS}
        for name, own in rows.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own), "utf-8")
        (tmp_path / "rubric.yaml").write_text(RUBRIC, "utf-8")
        data = {name: f"{name}.jsonl" for name in rows}
        recipe = {"name": "test", "model": {"base": str(base), "dtype": "float32"}, "data": data, "stages": stages}
        path = tmp_path / "recipe.yaml"
        for name, value in parts.items():
            recipe[name] = recipe.get(name, {}) | value
        path.write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
        return path

    return write


def faults_of(path: Path) -> list[str]:
    return [str(fault) for fault in check_recipe(resolve_recipe(path))]


def test_every_kind_of_stage_is_told() -> None:
    assert set(GIVEN) | NO_POLICY | TAKES == set(STAGE_KINDS)
    takes = {kind for kind, stage in STAGE_KINDS.items() if stage.spec.encoder_decoder_roles}
    assert takes == TAKES
    for kind in NO_POLICY:
        assert "policy" not in {STAGE_KINDS[kind].spec.reads.get(role) for role in ("model", "models", "policies")}


def test_who_cannot_take_it_says_so_in_one_line(folder: Path) -> None:
    stages = {kind: STAGE_KINDS[kind].model_validate({"kind": kind} | given) for kind, given in GIVEN.items()}
    recipe = Recipe.model_construct(
        name="test", model=ModelSettings(base=str(folder)), stages=stages, resources=Resources()
    )
    found = encoder_decoder_faults(recipe, AutoConfig.from_pretrained(folder))
    refused = f"{folder.name} is an encoder with a decoder, which no policy of a stage of kind"
    assert {fault.field: fault.problem for fault in found} == {
        f"stages.{kind}": f"{refused} {kind} can be" for kind in GIVEN
    }
    assert len(found) == len(GIVEN)
    for fault in found:
        assert "encoder-decoders are for dpo, evaluate, sample and sft" in str(fault)
        assert "\n" not in str(fault)


def test_it_is_refused_of_a_whole_recipe(folder: Path, recipe_of: Callable[..., Path]) -> None:
    kinds = ["kto", "reward", "grpo", "ppo", "quantise"]
    stages = {"pairs": {"kind": "preference_file"}} | {kind: {"kind": kind} | GIVEN[kind] for kind in kinds}
    found = [line for line in faults_of(recipe_of(folder, stages)) if "encoder with a decoder" in line]
    assert len(found) == len(kinds)
    for kind, line in zip(kinds, found, strict=True):
        assert f"kind {kind} can be" in line


def test_those_that_take_it_find_nothing(folder: Path, recipe_of: Callable[..., Path], tmp_path: Path) -> None:
    """All weights trained, and an encoder as the reward model that judges."""
    encoder = write_encoder(tmp_path / "encoder", "bert")
    stages = {
        "sft": {"kind": "sft", "max_length": 96, "lora": None},
        "answers": SAMPLE | {"model": "sft"},
        "compared": {"kind": "preferences", "responses": "answers", "raters": {"rubric": "rubric.yaml"}},
        "reward": {"kind": "reward", "preferences": "compared", "encoder": {"folder": str(encoder)}},
        "dpo": {"kind": "dpo", "model": "sft", "preferences": "compared", "lora": None, "max_length": 96},
        "evaluation": {"kind": "evaluate", "model": "dpo", "against": ["base", "sft"], "reward": "reward",
                       "sampling": {"max_new_tokens": 8}, "raters": {"rubric": "rubric.yaml"}},
    }  # fmt: skip
    path = recipe_of(folder, stages)
    assert faults_of(path) == []
    seen = encoder_decoder_notice(resolve_recipe(path), None)
    start = {"t5": "<pad>", "bart": "</s>"}[folder.name]
    assert seen is not None
    assert "\n" not in seen
    assert f"{folder.name} is an encoder with a decoder: its decoder begins with {start}, ends with </s>" in seen


SETTINGS = [
    ({"it": {"kind": "sft", "packing": True}}, {}, "whose rows hold one conversation each"),
    ({"it": {"kind": "sft", "lora": None, "adapter": {"kind": "ia3"}}}, {}, "trained whole or by low-rank adapters"),
    ({"it": SAMPLE}, {"model": {"quantise": "int8"}}, "in plain numbers alone"),
    ({"it": SAMPLE}, {"resources": {"vllm": {"url": "http://127.0.0.1:9"}}}, "which no vLLM server samples from"),
    ({"it": {"kind": "sft"}}, {"resources": {"sharding": "fsdp", "workers": 2}}, "which is not sharded"),
]


@pytest.mark.parametrize(("stages", "parts", "words"), SETTINGS)
def test_settings_that_it_cannot_have(
    stages: dict[str, Any], parts: dict[str, Any], words: str, t5: Path, recipe_of: Callable[..., Path]
) -> None:
    found = [line for line in faults_of(recipe_of(t5, stages, **parts)) if words in line]
    assert len(found) == 1


def test_a_judge_on_it(t5: Path, recipe_of: Callable[..., Path]) -> None:
    judge = {"kind": "generative", "model": "base"}
    stages = {"it": {"kind": "evaluate", "model": "base", "against": ["base"], "judge": judge}}
    found = [line for line in faults_of(recipe_of(t5, stages)) if "which no judge of a recipe can be" in line]
    assert len(found) == 1


def test_a_folder_of_one_is_no_judge_and_no_reward(
    folder: Path, recipe_of: Callable[..., Path], tmp_path: Path
) -> None:
    """Not even with the template that a version of ours has."""
    load_tokenizer(folder).save_pretrained(shutil.copytree(folder, tmp_path / "judge"))
    judge = {"kind": "label_probabilities", "folder": str(tmp_path / "judge")}
    encoder = write_encoder(tmp_path / "encoder", "bert")
    stages = {"it": {"kind": "evaluate", "model": "base", "against": ["base"], "judge": judge}}
    found = [line for line in faults_of(recipe_of(folder, stages)) if "which judges nothing here" in line]
    assert len(found) == 1
    config = json.loads((tmp_path / "judge" / "config.json").read_text("utf-8"))
    config |= {"architectures": ["BartForSequenceClassification"], "num_labels": 1}
    (tmp_path / "judge" / "config.json").write_text(json.dumps(config), "utf-8")
    problem = reward_model_problem(tmp_path / "judge")
    assert problem == f"a {folder.name} is an encoder with a decoder, whose scores are not read here"
    assert reward_model_problem(encoder) != problem


def test_a_weight_that_is_missing(folder: Path, tmp_path: Path, recipe_of: Callable[..., Path]) -> None:
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    absent = next(name for name in sorted(weights) if ("decoder" in name and "fc1.weight" in name) or ".wi." in name)
    save_file({name: weight for name, weight in weights.items() if name != absent}, copy / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    [found] = faults_of(recipe_of(copy, {"it": {"kind": "sft"}}))
    assert f"it does not hold {absent}, which the model needs: they would be drawn at random" in found


def test_texts_longer_than_a_decoder_writes(tmp_path: Path, recipe_of: Callable[..., Path]) -> None:
    """BART reads and writes 96 tokens each: a prompt and 96 new ones fit, 97 do not; T5 has no such end."""
    bart, t5 = (write_seq2seq(tmp_path / name, name) for name in ("bart", "t5"))

    def asked(base: Path, new: int) -> list[str]:
        return faults_of(recipe_of(base, {"it": SAMPLE | {"sampling": {"max_new_tokens": new}}}))

    assert asked(bart, 96) == []
    [found] = asked(bart, 97)
    assert "97 new tokens are more than the 96 that the model's decoder writes; set it to 96 or less" in found
    assert asked(t5, 4000) == []
