"""The stage, from artifacts on disk to an artifact on disk, for every way to hold reference and critic."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignment.chat import load_tokenizer
from alignment.data.prompts import load_prompts
from alignment.durable_files import folder_digest
from alignment.errors import StageError
from alignment.models.adapters import add_lora, is_adapter
from alignment.models.load import load_policy, save_policy
from alignment.models.reward_model import new_reward_model
from alignment.recipe.base import Lora
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.ppo import PpoStage
from alignment.records import Artifact
from alignment.stages.ppo import run
from alignment.training.snapshots import snapshots_of
from tests.contexts import stage_context

SPECIAL = ["<unk>", "</s>", "<pad>", "<user>", "<assistant>"]
WORDS = [*SPECIAL, "say", "red", "blue", "green", "gold", "very", "so", "and", "yes", "no", "then"]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}<user> {{ m.content }} {% else %}<assistant> {{ m.content }} </s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)
RUBRIC = """\
name: brief
description: A few words, and no more.
criteria:
  - {name: few_words, text: The answer is short., measure: words, weight: 1, full_at_most: 1, zero_at: 6}
"""
STAGE = {"kind": "ppo", "model": "base", "reward": "reward", "steps": 2, "episodes": 8, "epochs": 2, "batch_size": 4,
         "sampling": {"max_new_tokens": 6}, "learning_rate": 1e-3, "lora": {"rank": 4, "alpha": 8}}  # fmt: skip


def artifact(name, folder):
    return Artifact(name=name, kind="model", version=1, digest=folder_digest(folder), path=str(folder), key=name)


def recipe_of(stage, dtype="float32"):
    return Recipe.model_validate(
        {"name": "tiny", "seed": 3, "model": {"base": "tiny", "dtype": dtype}, "stages": {"ppo": STAGE | stage},
         "resources": {"device": "cpu"}}
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Artifacts ``base``, ``sft`` (an adapter that changes the base) and ``reward``, and a file of prompts."""
    root = tmp_path_factory.mktemp("ppo")
    torch.manual_seed(0)
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, eos_token_id=1, bos_token_id=None, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    base = artifact("base", root / "base")
    recipe = recipe_of({})
    policy, tokenizer = load_policy(base, base, recipe.run_settings())
    policy = add_lora(policy, Lora(rank=4, alpha=8))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    save_policy(policy, tokenizer, base, root / "sft")
    reward, _ = new_reward_model(base, base, recipe.run_settings())
    torch.nn.init.normal_(reward.score.weight)
    reward.save_pretrained(root / "reward")
    tokenizer.save_pretrained(root / "reward")
    rows = [{"prompt": f"say {a} {b}"} for a in WORDS[5:] for b in WORDS[6:]]
    (root / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    inputs = {name: artifact(name, root / name) for name in ("sft", "reward")} | {"base": base}
    return inputs, {"prompts": root / "prompts.jsonl"}


def context_of(made, folder, stage, dtype="float32", **replaced):
    inputs, data = made
    seen = []
    context = stage_context(
        "ppo", recipe_of(stage, dtype), inputs | replaced, data, folder / "output", folder / "checkpoints", seen.append
    )
    for path in (context.output, context.checkpoints):
        path.mkdir(parents=True)
    return context, seen


@pytest.mark.parametrize(
    "stage",
    [
        {},
        {"model": "sft"},
        {"lora": None, "critic": "policy"},
        {"critic": "reward"},
        {"model": "sft", "critic": "policy", "per_prompt": 2, "gradient_checkpointing": True},
    ],
    ids=lambda stage: ",".join(stage) or "default",
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_makes_a_policy_that_moved(stage, dtype, made, tmp_path):
    context, seen = context_of(made, tmp_path, stage, dtype)
    settings = context.recipe.stages["ppo"]
    result = run(settings, context)
    assert result.kind == "model"
    assert result.metrics["eos_rate"] <= 1
    assert [progress.step for progress in seen] == [1, 2]
    assert result.tokens_sampled > 0 < result.tokens_trained
    assert context.work_seconds > 0
    assert [step for step, _ in result.curves["score"]] == [1, 2]
    assert result.curves["kl"][0][1] == 0.0  # to the last bit
    for name in ("curves.json", "alarms.json"):
        json.loads((context.output / name).read_text("utf-8"))
    (row, *_rest) = json.loads((context.output / "samples" / "step-000002.json").read_text("utf-8"))
    assert row.keys() == {"prompt", "answer", "score", "kl", "tokens", "finished"}
    trained = artifact("ppo", context.output)
    assert is_adapter(trained) == (settings.lora is not None)
    weights = Path(context.output) / ("adapter_model.safetensors" if settings.lora else "model.safetensors")
    assert weights.exists()
    before, tokenizer = load_policy(context.inputs[settings.model], context.inputs["base"], context.run)
    after, _ = load_policy(trained, context.inputs["base"], context.run)
    ids = torch.tensor([tokenizer("<user> say red blue <assistant>", add_special_tokens=False)["input_ids"]])
    assert not torch.equal(before(ids).logits, after(ids).logits)


def test_raters_watch_it_on_held_out_prompts(made, tmp_path):
    rubric = tmp_path / "rubric.yaml"
    rubric.write_text(RUBRIC, "utf-8")
    stage = {"raters": {"rubric": "rubric.yaml", "noise": 0.0}, "watch_every": 2, "watch_prompts": 5, "steps": 4}
    context, _ = context_of(made, tmp_path, stage)
    context.data["rubric"] = rubric
    result = run(context.recipe.stages["ppo"], context)
    assert [step for step, _ in result.curves["held_out_win_rate"]] == [2, 4]
    assert all(rate * 10 == int(rate * 10) and 0 <= rate <= 1 for _, rate in result.curves["held_out_win_rate"])
    assert result.metrics["held_out_win_rate"] == result.curves["held_out_win_rate"][-1][1]
    start = (context.checkpoints / "start-answers.jsonl").read_text("utf-8")
    _train, held_out = load_prompts(context.data["prompts"], context.recipe.data.held_out)
    watched = sorted(prompt.id for prompt in held_out)[:5]
    assert [json.loads(line)["prompt_id"] for line in start.splitlines()] == watched
    again, _ = context_of(made, tmp_path / "again", stage)
    again.data["rubric"] = rubric
    (again.checkpoints / "start-answers.jsonl").write_text(start, "utf-8")  # as a run that was restarted finds it
    assert run(again.recipe.stages["ppo"], again).curves["held_out_win_rate"] == result.curves["held_out_win_rate"]


def test_a_stage_that_was_stopped_goes_on(made, tmp_path):
    context, _ = context_of(made, tmp_path, {"checkpoint_every": 1})
    whole = run(context.recipe.stages["ppo"], context)
    again, seen = context_of(made, tmp_path / "again", {"checkpoint_every": 1})
    (tmp_path / "again" / "checkpoints").rmdir()
    (tmp_path / "checkpoints" / "step-000001").rename(tmp_path / "again" / "first")
    (tmp_path / "again" / "checkpoints").mkdir()
    (tmp_path / "again" / "first").rename(tmp_path / "again" / "checkpoints" / "step-000001")
    rest = run(again.recipe.stages["ppo"], again)
    assert [progress.step for progress in seen] == [2]
    assert whole.curves["score"] == rest.curves["score"]
    assert folder_digest(context.output / "samples") != folder_digest(again.output / "samples")  # the first's is gone
    name = "adapter_model.safetensors"
    assert (context.output / name).read_bytes() == (again.output / name).read_bytes()


@pytest.mark.parametrize("reward", [None, "reward"])
def test_reward_functions_beside_the_reward_model_or_alone(reward, made, tmp_path):
    rewards = [{"kind": "keywords", "required": ["red"], "weight": 2.0}, {"kind": "length", "at_most": 3}]
    context, _ = context_of(made, tmp_path, {"reward": reward, "rewards": rewards, "missing_eos_penalty": 0.0})
    result = run(context.recipe.stages["ppo"], context)
    curves = {name: [value for _step, value in curve] for name, curve in result.curves.items()}
    for step in range(2):
        total = 2 * curves["reward.keywords"][step] + curves["reward.length"][step]
        total += curves["reward.reward_model"][step] if reward else 0.0
        assert curves["score"][step] == pytest.approx(total, abs=1e-5)
        assert 0 <= curves["reward.keywords"][step] <= 1
    assert ("reward.reward_model" in curves) == (reward is not None)


def test_another_chat_template_is_an_error_before_training(made, tmp_path):
    inputs, _data = made
    folder = tmp_path / "reward"
    folder.mkdir()
    for path in Path(inputs["reward"].path).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = TEMPLATE.replace("<user> ", "<user> so ")
    tokenizer.save_pretrained(folder)
    context, seen = context_of(made, tmp_path, {}, reward=artifact("reward", folder))
    with pytest.raises(StageError, match="another chat template"):
        run(context.recipe.stages["ppo"], context)
    assert not seen


def test_prompts_that_are_all_too_long_are_an_error(made, tmp_path):
    context, _ = context_of(made, tmp_path, {"max_prompt_length": 3})
    with pytest.raises(StageError, match="max_prompt_length=3"):
        run(context.recipe.stages["ppo"], context)


def test_prompts_that_are_too_long_are_counted(made, tmp_path, caplog):
    _inputs, data = made
    context, _ = context_of(made, tmp_path, {"steps": 1, "max_prompt_length": 6})
    train, _held_out = load_prompts(data["prompts"], context.recipe.data.held_out)
    long = [f"say {' '.join(WORDS[5:9])} {word}" for word in WORDS[5:]]
    context.data = {"prompts": tmp_path / "prompts.jsonl"}
    rows = [prompt.messages[-1].content for prompt in train] + long
    context.data["prompts"].write_text("\n".join(json.dumps({"prompt": text}) for text in rows), "utf-8")
    train, _held_out = load_prompts(context.data["prompts"], context.recipe.data.held_out)
    longer = sum(prompt.messages[-1].content in long for prompt in train)
    result = run(context.recipe.stages["ppo"], context)
    assert 0 < longer == result.metrics["dropped"]
    assert result.metrics["prompts"] == len(train) - longer
    assert f"{longer} of {len(train)} training prompts left out" in caplog.text


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"kl_estimator": "k2"}, "kl_estimator=k2 is no penalty in the reward"),
        ({"kl_estimator": "k3"}, "kl_estimator=k3 is no penalty in the reward"),
        ({"kl_in": "loss"}, "kl_estimator=k1 has no expected gradient in the loss"),
        ({"lora": {"dropout": 0.1}}, "lora.dropout=0.1"),
    ],
)
def test_what_would_silently_do_nothing_is_refused_in_one_line(setting, words):
    with pytest.raises(ValidationError) as raised:
        PpoStage.model_validate(STAGE | setting)
    (error,) = raised.value.errors()
    assert words in error["msg"]
    assert "\n" not in error["msg"]
    for estimator in ("k2", "k3"):
        PpoStage.model_validate(STAGE | {"kl_in": "loss", "kl_estimator": estimator})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("minibatches", 3),
        ("per_prompt", 3),
        ("sampling", {"temperature": 0.0}),
        ("sampling", {"top_p": 0.9}),
        ("sampling", {"top_k": 5}),
        ("sampling", {"min_p": 0.1}),
        ("sampling", {"repetition_penalty": 1.2}),
        ("dual_clip", 0.5),
        ("clip_low", 1.0),
        ("unknown", 1),
        ("reward", None),
        ("rewards", [{"kind": "length"}, {"kind": "length"}]),
    ],
)
def test_settings_that_cannot_work_are_refused(field, value):
    with pytest.raises(ValidationError):
        PpoStage.model_validate(STAGE | {field: value})


def test_snapshots_are_models_and_the_last_is_the_end(made, tmp_path):
    context, _ = context_of(made, tmp_path, {"steps": 4, "snapshot_every": 2})
    run(context.recipe.stages["ppo"], context)
    found = dict(snapshots_of(artifact("ppo", context.output)))
    assert list(found) == [2, 4]
    weights = [(Path(one.path) / "adapter_model.safetensors").read_bytes() for one in found.values()]
    assert weights[0] != weights[1] == (context.output / "adapter_model.safetensors").read_bytes()
    load_policy(found[2], context.inputs["base"], context.run)
