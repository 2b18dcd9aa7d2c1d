import pytest
import torch

from alignment.errors import StageError
from alignment.models.load import load_policy
from alignment.recipe.recipe import Recipe
from alignment.records import Artifact
from alignment.rollouts.policy_pool import PolicyPool

IDS = torch.tensor([[3, 5, 6, 7, 4]])


@torch.inference_mode()
def logits(pool: PolicyPool, artifact: Artifact) -> torch.Tensor:
    return pool.use(artifact).model(input_ids=IDS).logits


@torch.inference_mode()
def alone(artifact: Artifact, base: Artifact, recipe: Recipe) -> torch.Tensor:
    return load_policy(artifact, base, recipe.run_settings())[0](input_ids=IDS).logits


@pytest.mark.parametrize("order", [["base", "short", "other", "whole"], ["other", "base", "whole", "short", "base"]])
def test_each_policy_is_itself_in_any_order(order: list[str], policies: dict[str, Artifact], recipe: Recipe) -> None:
    pool = PolicyPool(policies["base"], recipe.run_settings())
    expected = {name: alone(policies[name], policies["base"], recipe) for name in order}
    for name in order + order[::-1]:
        torch.testing.assert_close(logits(pool, policies[name]), expected[name], rtol=0, atol=0)
    assert len({tuple(value.flatten().tolist()) for value in expected.values()}) == 4


def test_adapters_share_the_base_and_nothing_is_loaded_twice(policies: dict[str, Artifact], recipe: Recipe) -> None:
    pool = PolicyPool(policies["base"], recipe.run_settings())
    weights = set()
    for name in ("base", "short", "other", "base", "short"):
        weights.add(pool.use(policies[name]).model.get_input_embeddings().weight.data_ptr())
    assert len(weights) == 1
    first = pool.use(policies["whole"]).model
    assert pool.use(policies["whole"]).model is first
    pool.keep_only(policies["short"])
    assert pool.use(policies["whole"]).model is not first


def test_an_adapter_of_another_base_is_refused(policies: dict[str, Artifact], recipe: Recipe) -> None:
    pool = PolicyPool(policies["whole"], recipe.run_settings())
    with pytest.raises(StageError, match="adapter for"):
        pool.use(policies["short"])
