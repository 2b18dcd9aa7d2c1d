"""What is saved is what is loaded, an adapter stays with its base, and a reward model starts as its policy."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from alignment.chat import load_tokenizer, render_example
from alignment.durable_files import folder_digest
from alignment.errors import StageError
from alignment.models.adapters import add_lora
from alignment.models.base_model import prepare_base
from alignment.models.device import pick_device
from alignment.models.export import export_merged
from alignment.models.families import stop_ids
from alignment.models.load import load_policy, save_policy
from alignment.models.reward_model import load_reward_model, new_reward_model, score
from alignment.recipe.base import Lora
from alignment.recipe.load import load_recipe
from alignment.recipe.recipe import Recipe
from alignment.recipe.resources import Resources
from alignment.recipe.run_settings import ModelSettings
from alignment.records import Artifact, Message
from alignment.rollouts.policy_pool import PolicyPool
from alignment.workspace import Workspace

MakeModel = Callable[..., Path]
MESSAGES = (Message(role="user", content="What colour is the cat?"), Message(role="assistant", content="Red."))


def artifact(name: str, folder: Path) -> Artifact:
    return Artifact(name=name, kind="model", version=1, digest=folder_digest(folder), path=str(folder), key=name)


@pytest.fixture(params=["float32", "bfloat16"])
def recipe(request: pytest.FixtureRequest, make_recipe: Callable[..., Path], tmp_path: Path) -> Recipe:
    return load_recipe(make_recipe(tmp_path / "recipe", changes={"model.dtype": request.param}))


@pytest.fixture
def model(recipe: Recipe, make_model: MakeModel, tmp_path: Path) -> Artifact:
    return artifact("base", make_model(tmp_path / "base", dtype=recipe.model.dtype))


def adapter_on(base: Artifact, recipe: Recipe, folder: Path, seed: int = 1) -> tuple[Artifact, PeftModel]:
    """An adapter that changes what its base says, saved; and as it was in memory."""
    loaded, tokenizer = load_policy(base, base, recipe.run_settings())
    adapter = add_lora(loaded, Lora(rank=4))
    torch.manual_seed(seed)
    for name, weight in adapter.named_parameters():
        if "lora_" in name:
            weight.data.normal_(std=0.2)
    save_policy(adapter, tokenizer, base, folder)
    return artifact("sft", folder), adapter.eval()


def logits(policy: torch.nn.Module, tokenizer: object) -> torch.Tensor:
    ids, _mask = render_example(tokenizer, MESSAGES)  # type: ignore[arg-type]
    with torch.inference_mode():
        return policy(input_ids=torch.tensor([ids])).logits.float()  # type: ignore[no-any-return]


def test_an_adapter_comes_back_to_the_bit(recipe: Recipe, model: Artifact, tmp_path: Path) -> None:
    saved, before = adapter_on(model, recipe, tmp_path / "adapter")
    loaded, tokenizer = load_policy(saved, model, recipe.run_settings())
    assert torch.equal(logits(loaded, tokenizer), logits(before, tokenizer))
    plain, _ = load_policy(model, model, recipe.run_settings())
    assert not torch.allclose(logits(loaded, tokenizer), logits(plain, tokenizer), atol=0.1)
    assert not loaded.training
    assert not (tmp_path / "adapter" / "README.md").exists()


def test_whole_weights_come_back_to_the_bit(recipe: Recipe, model: Artifact, tmp_path: Path) -> None:
    before, tokenizer = load_policy(model, model, recipe.run_settings())
    with torch.no_grad():
        before.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    save_policy(before, tokenizer, model, tmp_path / "whole")
    loaded, tokenizer = load_policy(artifact("sft", tmp_path / "whole"), model, recipe)
    assert torch.equal(logits(loaded, tokenizer), logits(before, tokenizer))
    assert {weight.dtype for weight in loaded.parameters()} == {getattr(torch, recipe.model.dtype)}


def test_adapters_stay_in_float32(recipe: Recipe, model: Artifact) -> None:
    """In bfloat16 an update a hundred times smaller than the weight would be lost."""
    loaded, _ = load_policy(model, model, recipe.run_settings(), trainable=True)
    adapter = add_lora(loaded, Lora(rank=4))
    trained = {weight.dtype for weight in adapter.parameters() if weight.requires_grad}
    assert trained == {torch.float32}
    assert loaded.training


def test_a_trainable_adapter_trains_its_own_weights_alone(recipe: Recipe, model: Artifact, tmp_path: Path) -> None:
    saved, _ = adapter_on(model, recipe, tmp_path / "adapter")
    loaded, _ = load_policy(saved, model, recipe.run_settings(), trainable=True)
    trained = [name for name, weight in loaded.named_parameters() if weight.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    frozen, _ = load_policy(saved, model, recipe.run_settings())
    assert not any(weight.requires_grad for name, weight in frozen.named_parameters() if "lora_" in name)


def test_an_adapter_on_another_base_is_refused(
    recipe: Recipe, model: Artifact, make_model: MakeModel, tmp_path: Path
) -> None:
    saved, _ = adapter_on(model, recipe, tmp_path / "adapter")
    other = artifact("base", make_model(tmp_path / "other", seed=9, dtype=recipe.model.dtype))
    with pytest.raises(StageError, match=rf"an adapter for base \({model.digest[:12]}\).*{other.digest[:12]}"):
        load_policy(saved, other, recipe.run_settings())


def test_an_adapter_loads_without_this_project(recipe: Recipe, model: Artifact, tmp_path: Path) -> None:
    """The adapter names its base as the recipe does; here that is a folder, so transformers finds it."""
    named = model.model_copy(update={"key": model.path})
    _, before = adapter_on(named, recipe, tmp_path / "adapter")
    loaded = AutoModelForCausalLM.from_pretrained(str(tmp_path / "adapter"), dtype="auto")
    tokenizer = load_tokenizer(tmp_path / "adapter")
    tolerance = 0.0 if recipe.model.dtype == "float32" else 0.5  # transformers reads the adapter in the base's dtype
    torch.testing.assert_close(logits(loaded, tokenizer), logits(before, tokenizer), atol=tolerance, rtol=0)


def test_a_new_reward_model_is_its_policy_with_a_head_of_zeros(recipe: Recipe, model: Artifact, tmp_path: Path) -> None:
    saved, _ = adapter_on(model, recipe, tmp_path / "adapter")
    reward, tokenizer = new_reward_model(saved, model, recipe.run_settings())
    policy, _ = load_policy(saved, model, recipe.run_settings())
    trunk = policy.merge_and_unload()
    ids = torch.tensor([render_example(tokenizer, MESSAGES)[0]])
    with torch.inference_mode():
        mine = reward.eval()(input_ids=ids, output_hidden_states=True)
        theirs = trunk(input_ids=ids, output_hidden_states=True)
    assert len(mine.hidden_states) == len(theirs.hidden_states) == 3
    assert all(torch.equal(a, b) for a, b in zip(mine.hidden_states, theirs.hidden_states, strict=True))
    assert mine.logits.tolist() == [[0.0]]
    assert mine.hidden_states[-1].abs().max() > 0.1  # the zeros are the head's
    assert reward.config.num_labels == 1
    assert reward.config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("pad", ["<pad>", None])
def test_a_score_depends_on_its_text_alone(
    make_model: MakeModel, make_recipe: Callable[..., Path], tmp_path: Path, pad: str | None
) -> None:
    """Not on what it is padded with or beside, also where the pad token is EOS."""
    recipe = load_recipe(make_recipe(tmp_path / "recipe"))
    base = artifact("base", make_model(tmp_path / "base", pad=pad))
    reward, tokenizer = new_reward_model(base, base, recipe.run_settings())
    torch.manual_seed(2)
    torch.nn.init.normal_(reward.score.weight)
    reward.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    loaded, tokenizer = load_reward_model(artifact("reward", tmp_path / "reward"), recipe)
    texts = ["Red.", "It is the white cat, is it?", "", "Blue. Blue. Blue. Blue.", "No"]
    sequences = [render_example(tokenizer, (MESSAGES[0], Message(role="assistant", content=text)))[0] for text in texts]
    together = score(loaded, tokenizer, sequences, batch_size=8)
    alone = [score(loaded, tokenizer, [sequence])[0] for sequence in sequences]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({round(value, 4) for value in alone}) == len(texts)


def test_export_merges_the_adapter_into_plain_weights(
    make_model: MakeModel, make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = load_recipe(make_recipe(tmp_path / "recipe"))
    base = artifact("base", make_model(tmp_path / "base"))
    saved, before = adapter_on(base, recipe, tmp_path / "adapter")
    export_merged(saved, base, recipe, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"))
    tokenizer = load_tokenizer(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, tokenizer), logits(before, tokenizer), atol=1e-4, rtol=1e-4)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def test_an_answer_ends_with_eos_or_what_the_model_adds(make_model: MakeModel, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(make_model(tmp_path / "model")))
    tokenizer = load_tokenizer(tmp_path / "model")
    assert stop_ids(model, tokenizer) == {tokenizer.eos_token_id}
    model.generation_config.eos_token_id = [7, tokenizer.eos_token_id]
    assert stop_ids(model, tokenizer) == {7, tokenizer.eos_token_id}
    model.generation_config.eos_token_id = None
    assert stop_ids(model, tokenizer) == {tokenizer.eos_token_id}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_said() -> None:
    assert pick_device(Resources(device="auto")).type == "cpu"
    with pytest.raises(StageError, match="finds no GPU"):
        pick_device(Resources(device="cuda"))


def test_the_bases_digest_follows_its_files(make_model: MakeModel, tmp_path: Path) -> None:
    space, settings = Workspace(tmp_path / "space"), ModelSettings(base=str(make_model(tmp_path / "model")))
    first = prepare_base(space, settings)
    assert prepare_base(space, settings) == first
    assert first.digest == folder_digest(tmp_path / "model")
    make_model(tmp_path / "model", seed=3)
    assert prepare_base(space, settings).digest != first.digest


def test_an_adapter_has_the_same_bytes_in_every_process(tiny_model: Path, tmp_path: Path) -> None:
    """PEFT keeps the layers' names in a set, whose order depends on the process."""
    program = (
        "import sys, torch\nfrom pathlib import Path\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "from alignment.models.adapters import add_lora\nfrom alignment.models.load import save_policy\n"
        "from alignment.recipe.base import Lora\nfrom alignment.records import Artifact\n"
        "base, output = sys.argv[1:]\ntorch.manual_seed(0)\n"
        "model = add_lora(AutoModelForCausalLM.from_pretrained(base), Lora(rank=2))\n"
        "artifact = Artifact(name='base', kind='model', version=1, digest='0', path=base, key=base)\n"
        "save_policy(model, AutoTokenizer.from_pretrained(base), artifact, Path(output))\n"
    )
    digests = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-c", program, str(tiny_model), str(tmp_path / seed)]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": seed}, cwd=Path(__file__).parents[3])
        digests.add(folder_digest(tmp_path / seed))
    assert len(digests) == 1


def test_what_is_loaded_in_inference_mode_is_used_outside_of_it(
    recipe: Recipe, model: Artifact, tmp_path: Path
) -> None:
    """A measure asks for a policy first where a stage goes on from what it had kept; others use the same weights."""
    first, _ = adapter_on(model, recipe, tmp_path / "first")
    second, _ = adapter_on(model, recipe, tmp_path / "second", seed=2)
    second = second.model_copy(update={"name": "dpo"})
    pool = PolicyPool(model, recipe.run_settings())
    with torch.inference_mode():
        pool.use(model)
        inside = logits(pool.use(first).model, pool.tokenizer(first))
        trained, _ = load_policy(first, model, recipe.run_settings(), trainable=True)
        reward, _ = new_reward_model(model, model, recipe.run_settings())
    other = logits(pool.use(second).model, pool.tokenizer(second))
    assert torch.equal(logits(pool.use(first).model, pool.tokenizer(first)), inside)
    assert not torch.equal(inside, other)
    assert not any(weight.is_inference() for part in (trained, reward) for weight in part.parameters())
