"""What `rlhf check` and `rlhf plan` say of encoders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification

from alignment.cache_key import stage_key
from alignment.checks.data import read_data
from alignment.checks.encoders.faults import encoder_faults
from alignment.checks.graph import wiring_faults
from alignment.checks.recipe import check_recipe
from alignment.checks.row_counts import row_counts
from alignment.errors import InputError
from alignment.plan.encoders import measure_encoders
from alignment.plan.hardware import GPUS
from alignment.plan.plan import make_plan
from alignment.plan.sizes import encoder_size, model_size
from alignment.plan.texts import Texts
from alignment.recipe.files import resolve_data, with_absolute_data
from alignment.recipe.graph import stage_inputs
from alignment.recipe.load import load_recipe
from alignment.recipe.resolved import resolve_recipe
from flows.pipeline.stage_task import sources_of
from tests.tiny_encoders import ENCODERS, write_encoder

MakeRecipe = Callable[..., Path]
STAGES = ("sft", "responses", "preferences", "reward")


@pytest.fixture
def recipe_of(make_recipe: MakeRecipe, tmp_path: Path) -> Callable[..., Path]:
    """A recipe whose reward model starts from the encoder that stands beside it as `encoder`."""

    def make(**changes: Any) -> Path:
        changes = {"stages.reward.encoder": {"folder": "encoder"}, "stages.reward.model": "base"} | changes
        return make_recipe(tmp_path / "recipe", stages=STAGES, changes=changes)

    return make


def lines(path: Path) -> list[str]:
    recipe = load_recipe(path)
    return [str(fault) for fault in encoder_faults(recipe, resolve_data(recipe, path))]


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_found_whole(name: str, recipe_of: Callable[..., Path], tmp_path: Path) -> None:
    write_encoder(tmp_path / "recipe" / "encoder", name, head="")
    assert lines(recipe_of()) == []


def test_what_is_wrong_is_said_in_one_line(recipe_of: Callable[..., Path], tmp_path: Path, make_model: Any) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "recipe" / "encoder"
    (line,) = lines(recipe_of())
    assert line.startswith("stages.reward.encoder.folder: no folder ")
    make_model(folder)
    (line,) = lines(recipe_of())
    assert "llama is a decoder as it is configured, whose first token sees no other" in line
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "t5", "is_encoder_decoder": True}))
    (line,) = lines(recipe_of())
    assert "t5 is an encoder with a decoder, not an encoder alone" in line

    for file in folder.iterdir():
        file.unlink()
    write_encoder(folder, "bert")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: w for name, w in weights.items() if "layer.0.attention.self.query" not in name},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    (line,) = lines(recipe_of())
    assert "does not hold bert.encoder.layer.0.attention.self.query.bias and 1 more, which the encoder needs" in line
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    (line,) = lines(recipe_of())
    assert "not a whole weight file" in line
    write_encoder(folder, "bert", vocab_size=40)
    (line,) = lines(recipe_of())
    assert "and the model has 40 embeddings" in line or "and the model has 96 embeddings" in line
    write_encoder(folder, "bert", is_decoder=True)
    (line,) = lines(recipe_of())
    assert "bert is a decoder as it is configured" in line
    write_encoder(folder, "bert")
    (line,) = lines(recipe_of(**{"stages.reward.lora": {"rank": 4, "targets": ["q_proj"]}}))
    assert line.startswith("stages.reward.lora.targets.0: BertForSequenceClassification has no layer q_proj")
    weights = json.loads((folder / "tokenizer.json").read_text())
    weights["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(weights))
    (line,) = lines(recipe_of())
    assert "writes no control tokens before, between and behind a pair of texts" in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stages.reward.encoder": {}}, "name one of folder and hub: which encoder"),
        ({"stages.reward.encoder": {"folder": "a", "revision": "b"}}, "revision is of a hub's encoder"),
        ({"stages.reward.model": "sft"}, "model=sft and encoder: it starts from one of them"),
        ({"stages.reward.head": "probe"}, "head=probe fits the features of a policy's trunk"),
        ({"stages.reward.lora": None, "stages.reward.adapter": {"kind": "ia3"}}, "adapter=ia3 is for decoders"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    changes: dict[str, Any], said: str, recipe_of: Callable[..., Path]
) -> None:
    with pytest.raises(InputError, match=said):
        load_recipe(recipe_of(**changes))


def test_a_critic_of_an_encoder_is_refused(recipe_of: Callable[..., Path]) -> None:
    ppo = {"kind": "ppo", "model": "sft", "reward": "reward", "critic": "reward"}
    recipe = load_recipe(recipe_of(**{"stages.ppo": ppo}))
    (line,) = [str(fault) for fault in wiring_faults(recipe)]
    assert line.startswith("stages.ppo.critic: reward is an encoder, which reads whole texts by its own tokenizer")
    assert wiring_faults(load_recipe(recipe_of(**{"stages.ppo": {**ppo, "critic": "policy"}}))) == []


def test_its_key_is_of_the_folders_bytes_and_of_no_policy(recipe_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "recipe" / "encoder", "bert")
    path = recipe_of()
    recipe = load_recipe(path)
    data = resolve_data(recipe, path)
    stage = recipe.stages["reward"]
    assert stage_inputs(stage) == {"preferences": ("preferences",)}
    assert sources_of(recipe, stage) == {"preferences"}
    assert with_absolute_data(recipe, data).stages["reward"].encoder_used().folder == str(folder)  # type: ignore[union-attr]

    def key(where: Path) -> str:
        return stage_key("reward", stage, recipe.run_settings(stage), {}, {"encoder": where})

    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved" / "bert"
    first = key(folder)
    folder.rename(moved)
    assert key(moved) == first
    assert key(write_encoder(tmp_path / "other", "bert", seed=1)) != first


def test_check_counts_rows_and_plan_counts_the_encoder(recipe_of: Callable[..., Path], tmp_path: Path) -> None:
    """Expected: the plain class's own parameters, and PEFT's of the adapter and the head."""
    from alignment.models.adapters import add_lora
    from alignment.recipe.base import Lora

    folder = write_encoder(tmp_path / "recipe" / "encoder", "bert")
    rows = [
        {"prompt": f"What colour is {n}? " * (18 if n == 1 else 1), "chosen": "Red.", "rejected": "Blue. " * (n or 90)}
        for n in range(20)
    ]
    path = recipe_of(
        **{
            "data.preferences": "pairs.jsonl",
            "stages.pairs": {"kind": "preference_file"},
            "stages.own": {"kind": "reward", "encoder": {"folder": "encoder"}, "preferences": "pairs"},
        }
    )
    (path.parent / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    resolved = resolve_recipe(path)
    assert [str(fault) for fault in check_recipe(resolved)] == []
    assert row_counts(resolved)["own"]["dropped"] == 1  # the answer that is too long, not the prompt

    plain = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    whole = sum(weight.numel() for weight in plain.parameters())
    assert encoder_size(AutoConfig.from_pretrained(folder), 96).scoring == whole
    trained = sum(w.numel() for w in add_lora(plain, Lora(), reward=True).parameters() if w.requires_grad)
    data, _faults = read_data(resolved.recipe, resolved.data)
    size = model_size(AutoConfig.from_pretrained(resolved.recipe.model.base))
    found = measure_encoders(resolved, data)
    plans = {one.name: one for one in make_plan(resolved.recipe, size, Texts(), list(GPUS[:1]), encoders=found)}
    assert plans["own"].trainable == trained
    assert plans["own"].parameters == whole + trained
    assert plans["own"].tokens_trained > 0
    texts = found["own"][1]
    lengths = (*texts.pairs.lengths, *texts.held_out_pairs.lengths)
    assert sum(p.prompt + max(p.chosen, p.rejected) > 96 for p in lengths) == 2
