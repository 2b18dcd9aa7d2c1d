"""Which stages run on Ray, what is refused before anything runs, and what counts in a cache key. No Ray is started."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment.checks.graph import wiring_faults
from alignment.errors import InputError
from alignment.models.base_model import prepare_base
from alignment.recipe.files import resolve_data
from alignment.recipe.graph import workers_of
from alignment.recipe.load import load_recipe
from alignment.workspace import Workspace
from flows.cluster import on_ray
from flows.pipeline.stage_task import make_job

MakeRecipe = Callable[..., Path]


def faults(make_recipe: MakeRecipe, folder: Path, changes: dict[str, Any]) -> dict[str | None, str]:
    found = wiring_faults(load_recipe(make_recipe(folder, changes=changes)))
    return {fault.field: f"{fault.problem}; {fault.remedy}" for fault in found}


def test_workers_share_batches_evenly(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    found = faults(make_recipe, tmp_path, {"resources.workers": 3, "stages.dpo.gradient_accumulation": 6})
    assert set(found) == {f"stages.{name}.batch_size" for name in ("sft", "reward", "dpo")}
    assert found["stages.sft.batch_size"] == "3 workers cannot share batches of 4; give a multiple of 3"
    assert "set batch_size: 24 and gradient_accumulation: 1" in found["stages.dpo.batch_size"]


def test_ppo_takes_any_number_of_workers(make_recipe: MakeRecipe, tools: SimpleNamespace, tmp_path: Path) -> None:
    assert faults(make_recipe, tmp_path, {"stages.ppo": tools.PPO | {"workers": 5}}) == {}


def test_sharding_wants_workers_that_share_a_model(
    make_recipe: MakeRecipe, tools: SimpleNamespace, tmp_path: Path
) -> None:
    def found(changes: dict[str, Any]) -> dict[str | None, str]:
        return faults(make_recipe, tmp_path, {"resources.sharding": "fsdp"} | changes)

    two = {"resources.workers": 2}
    assert found(two) == {}
    assert found(two | {"stages.sft.workers": 1}) == {}  # whose model one worker holds
    assert found({"stages.responses.workers": 2}) == {
        "resources.sharding": "fsdp shards a model over the workers that train it, and no stage trains on "
        "several; set workers to 2 or more, or sharding to none"
    }
    assert found(two | {"stages.ppo": tools.PPO}) == {}
    assert found(two | {"stages.ppo": tools.PPO | {"rollout_workers": 2}}) == {}
    vllm = two | {"resources.vllm": {"url": "http://host:8000"}}
    assert found(vllm | {"stages.ppo": tools.PPO | {"importance_cap": 2.0}}) == {
        "stages.ppo.workers": "the vLLM server takes a whole adapter, and fsdp leaves each worker a part of it; "
        "set workers: 1 for this stage, resources.sharding: none, or remove resources.vllm"
    }
    assert found(vllm | {"stages.ppo": tools.PPO | {"importance_cap": 2.0, "workers": 1}}) == {}
    grpo = two | {"stages.grpo": {"kind": "grpo", **tools.GROUP}}
    assert found(grpo) == {}
    sixes = {f"stages.{name}.batch_size": 6 for name in ("sft", "reward", "dpo")}
    assert found({"resources.workers": 3, "resources.min_workers": 2} | sixes) == {}
    assert found(two | {"resources.min_workers": 1}) == {
        "resources.min_workers": "one worker alone cannot go on with what is sharded (fsdp); set it to 2 or more"
    }
    with pytest.raises(InputError, match=r"resources\.sharding: 'fsdp1' is not one of none, fsdp"):
        load_recipe(make_recipe(tmp_path, changes=two | {"resources.sharding": "fsdp1"}))


@pytest.mark.parametrize(
    ("ppo", "refused"),
    [
        ({"max_staleness": 1}, "needs rollout_workers"),
        ({"max_staleness": 1, "rollout_workers": 1}, "importance_cap"),
        ({"max_staleness": 1, "rollout_workers": 1, "importance_cap": 2.0}, None),
    ],
)
def test_answers_drawn_ahead_need_who_draws_them_and_weights(
    make_recipe: MakeRecipe, tools: SimpleNamespace, tmp_path: Path, ppo: dict[str, Any], refused: str | None
) -> None:
    path = make_recipe(tmp_path, changes={"stages.ppo": tools.PPO | ppo})
    if refused is None:
        assert wiring_faults(load_recipe(path)) == []
    else:
        with pytest.raises(InputError, match=refused):
            load_recipe(path)


def test_a_server_that_samples_takes_no_rollout_workers(
    make_recipe: MakeRecipe, tools: SimpleNamespace, tmp_path: Path
) -> None:
    vllm = {"resources.vllm": {"url": "http://host:8000"}}
    ppo = tools.PPO | {"rollout_workers": 1, "importance_cap": 2.0}
    grpo = {"kind": "grpo", **tools.GROUP, "rollout_workers": 1}
    found = faults(make_recipe, tmp_path, vllm | {"stages.ppo": ppo, "stages.grpo": grpo})
    assert set(found) == {"stages.ppo.rollout_workers", "stages.grpo.rollout_workers"}
    several = {"kind": "grpo", **tools.GROUP, "workers": 2}  # one of them speaks for all
    assert faults(make_recipe, tmp_path, vllm | {"stages.grpo": several}) == {}


def test_one_worker_needs_no_ray(make_recipe: MakeRecipe, tools: SimpleNamespace, tmp_path: Path) -> None:
    def spread(changes: dict[str, Any]) -> set[str]:
        recipe = load_recipe(make_recipe(tmp_path, changes=changes))
        return {name for name, stage in recipe.stages.items() if on_ray(recipe.resources, stage)}

    assert spread({}) == set()
    assert spread({"resources.workers": 2}) == {"sft", "responses", "reward", "dpo", "evaluation"}
    assert spread({"resources.workers": 2, "stages.sft.workers": 1}) == {"responses", "reward", "dpo", "evaluation"}
    assert spread({"resources.address": "auto"}) == {"sft", "responses", "reward", "dpo", "evaluation"}
    assert spread({"stages.dpo.workers": 4}) == {"dpo"}
    assert spread({"stages.ppo": tools.PPO | {"rollout_workers": 1}}) == {"ppo"}
    vllm = {"resources.workers": 2, "resources.vllm": {"url": "http://host:8000"}}
    assert spread(vllm) == {"sft", "reward", "dpo", "evaluation"}


def test_a_judge_of_ones_own_is_spread_and_an_endpoint_is_not(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    endpoint = {"kind": "generative", "endpoint": {"url": "http://host:8000/v1", "model": "m"}}

    def workers(judge: dict[str, Any], **more: Any) -> tuple[int, bool]:
        stage = {"kind": "judge", "responses": "responses", "judge": judge, **more}
        recipe = load_recipe(make_recipe(tmp_path, changes={"stages.judged": stage, "resources.workers": 2}))
        return workers_of(recipe.resources, recipe.stages["judged"]), on_ray(recipe.resources, recipe.stages["judged"])

    assert workers({"kind": "label_probabilities"}) == (2, True)
    assert workers({"kind": "label_probabilities"}, workers=1) == (1, False)
    assert workers(endpoint) == (1, False)
    with pytest.raises(InputError, match="an endpoint is asked from one process"):
        workers(endpoint, workers=2)


def test_a_client_address_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"resources\.address: .* run this command as a Ray job"):
        load_recipe(make_recipe(tmp_path, changes={"resources.address": "ray://head:10001"}))


def test_only_how_many_workers_counts(make_recipe: MakeRecipe, tiny_model: Path, tmp_path: Path) -> None:
    """Not where they are, nor which setting says so; stages that do not train keep their keys."""

    def keys(number: int, changes: dict[str, Any]) -> list[str]:
        judged = {"kind": "judge", "responses": "responses", "judge": {"kind": "label_probabilities"}}
        path = make_recipe(tmp_path / str(number), changes={"stages.judged": judged} | changes)
        recipe, workspace = load_recipe(path), Workspace(tmp_path / "workspace")
        made = {"base": prepare_base(workspace, recipe.model)}
        made["sft"] = made["responses"] = made["base"]
        data = resolve_data(recipe, path)
        return [make_job(name, recipe, made, data, workspace).key for name in ("sft", "responses", "judged")]

    one = keys(1, {})
    two = keys(2, {"resources.workers": 2})
    assert one[0] != two[0]
    assert one[1:] == two[1:]
    assert keys(3, {"stages.sft.workers": 2, "stages.responses.workers": 3, "stages.judged.workers": 4}) == two
    assert keys(4, {"resources.workers": 2, "resources.max_failures": 0, "resources.stall_seconds": 9}) == two
    assert keys(5, {"resources.address": "auto"}) == one
    assert keys(6, {"resources.sharding": "fsdp"}) == one  # where one worker trains
    sharded = keys(7, {"resources.workers": 2, "resources.sharding": "fsdp"})
    assert sharded[0] not in (one[0], two[0])  # gradients are added up in another order
    assert sharded[1] == one[1]
