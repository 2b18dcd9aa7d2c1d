"""Attention by choice: the same model but for rounding, and a kernel that is not there is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment.checks.recipe import check_recipe
from alignment.durable_files import folder_digest
from alignment.errors import StageError
from alignment.models.load import attend, load_policy
from alignment.models.reward_model import new_reward_model
from alignment.recipe.load import load_recipe
from alignment.recipe.resolved import resolve_recipe
from alignment.records import Artifact, Sampling
from alignment.rollouts.policy_pool import PolicyPool


def artifact(folder: Path) -> Artifact:
    return Artifact(name="base", kind="model", version=1, digest=folder_digest(folder), path=str(folder), key="base")


def settings(make_recipe: Callable[..., Path], folder: Path, attention: str | None) -> Any:
    changes = {"model.dtype": "float32"} | ({} if attention is None else {"model.attention": attention})
    return load_recipe(make_recipe(folder / str(attention), changes=changes)).run_settings()


def test_eager_and_sdpa_are_one_model(make_recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    """Logits within float32's rounding, and the same greedy tokens, through the engine that shares beginnings."""
    base = artifact(tiny_model)
    rows = torch.arange(5, 45).reshape(2, 20)
    found, drawn = {}, {}
    for attention in (None, "sdpa", "eager"):
        run = settings(make_recipe, tmp_path, attention)
        model, _tokenizer = load_policy(base, base, run)
        assert model.config._attn_implementation == (attention or "sdpa")
        with torch.inference_mode():
            found[attention] = model(input_ids=rows).logits
        pool = PolicyPool(base, run)
        engine = pool.use(base).engine(4)
        greedy = Sampling(temperature=0.0, max_new_tokens=12)
        groups = engine.generate(rows.tolist(), sampling=greedy, seeds=[1, 2, 3, 4], per_prompt=2)
        drawn[attention] = [[answer.tokens for answer in group] for group in groups]
    assert torch.equal(found[None], found["sdpa"])
    assert (found["eager"] - found["sdpa"]).abs().max() <= 2e-5
    assert not torch.equal(found["eager"], found["sdpa"])  # it is another computation
    assert drawn["eager"] == drawn["sdpa"] == drawn[None]


def test_a_reward_model_attends_as_the_recipe_says(
    make_recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    base = artifact(tiny_model)
    model, _tokenizer = new_reward_model(base, base, settings(make_recipe, tmp_path, "eager"))
    assert model.config._attn_implementation == "eager"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_a_kernel_that_is_not_here_is_said_before_anything_runs(
    make_recipe: Callable[..., Path], tmp_path: Path, attention: str
) -> None:
    path = make_recipe(tmp_path / "recipe", changes={"model.attention": attention})
    faults = check_recipe(resolve_recipe(path))
    assert [(fault.field, fault.problem, fault.remedy) for fault in faults] == [
        ("model.attention", f"{attention} runs on a GPU, and none is used here", "set it to sdpa")
    ]


def test_a_class_that_does_not_compute_it_is_named(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with pytest.raises(StageError, match=r"model.attention is none_such"):
        attend(model, "none_such")
