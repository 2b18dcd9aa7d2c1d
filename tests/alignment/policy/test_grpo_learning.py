"""GRPO and RLOO learn: three tasks with a known true reward, through the whole stage, from a random tiny model.

The tasks are those of ``test_ppo_learning``: produce a token, sort digits, follow a format. The reward is a user's
function in a file, so that what a user writes is what is tested.
"""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from alignment.durable_files import folder_digest
from alignment.recipe.recipe import Recipe
from alignment.records import Artifact
from alignment.stages.grpo import run
from tests.contexts import stage_context

DIGITS = range(10, 16)
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }} w7 {% else %}{{ m.content }} </s>{% endif %}"
    "{% endfor %}"
)
REWARDS = '''
def produce_a_token(prompts, responses, references, target):
    """The share of the six places that hold the target."""
    return [response.split().count(target) / 6 for response in responses]


def sort_digits(prompts, responses, references):
    """The share of places that hold the prompt's digits in order."""
    scores = []
    for prompt, response in zip(prompts, responses):
        wanted = sorted(prompt[-1]["content"].split())
        scores.append(sum(a == b for a, b in zip(response.split(), wanted)) / len(wanted))
    return scores


async def follow_a_format(prompts, responses, references):
    """A third each for opening first, for closing after two to four other words, and for nothing after that."""
    scores = []
    for response in responses:
        words = response.split()
        opened = words[:1] == ["w20"]
        close = words.index("w21") if "w21" in words else 0
        closed = opened and 3 <= close <= 5
        scores.append((opened + closed + (closed and len(words) == close + 1)) / 3)
    return scores
'''
# Options, tokens, steps, learning rate, its schedule, beta, the mean reward that the last steps must reach. Without the
# pull towards the untrained (nearly uniform) reference the harder two collapse: the entropy is gone before the task is
# learned, all answers to a prompt score the same, and nothing is left to learn from.
TASKS = {
    "produce_a_token": ({"target": "w9"}, 6, 40, 3e-3, "constant", 0.0, 0.9),
    "sort_digits": ({}, 3, 180, 2e-3, "linear", 0.05, 0.7),  # 0.31 without reading the prompt
    "follow_a_format": ({}, 8, 160, 2e-3, "linear", 0.02, 0.8),
}
FAST = {"episodes": 64, "per_prompt": 8, "epochs": 2, "minibatches": 2, "batch_size": 32, "lora": None, "warmup": 0.0}


def tokenizer_of(vocabulary, eos):
    words = {("</s>" if i == eos else f"w{i}"): i for i in range(vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="w2", unk_token="w3")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def artifact(name, folder):
    return Artifact(name=name, kind="model", version=1, digest=folder_digest(folder), path=str(folder), key=name)


@pytest.fixture
def train(tiny, tmp_path):
    """Trains the tiny policy in a stage; returns the stage's result and context."""

    def train(stage, *, seed, folder="run", prompts=None):
        root = tmp_path / folder
        tiny.policy(seed).save_pretrained(root / "base")
        tokenizer_of(tiny.vocabulary, tiny.eos).save_pretrained(root / "base")
        rows = prompts or [{"prompt": f"w{a} w{b}"} for a in DIGITS for b in DIGITS]
        (root / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
        (root / "rewards.py").write_text(REWARDS, "utf-8")
        recipe = Recipe.model_validate(
            {"name": "tiny", "seed": seed, "model": {"base": "tiny", "dtype": "float32"}, "data": {"held_out": 0.1},
             "stages": {"policy": stage}, "resources": {"device": "cpu"}}
        )  # fmt: skip
        task = stage["rewards"][0]["function"].split(":")[1]
        context = stage_context(
            "policy", recipe, {"base": artifact("base", root / "base")},
            {"prompts": root / "prompts.jsonl", f"function:{task}": root / "rewards.py"},
            root / "output", root / "checkpoints",
        )  # fmt: skip
        for path in (context.output, context.checkpoints):
            path.mkdir()
        return run(recipe.stages["policy"], context), context

    return train


def learned(train, kind, task, seed):
    """The mean reward of the first and of the last steps, and the one that is wanted at the end."""
    options, tokens, steps, rate, schedule, beta, wanted = TASKS[task]
    reward = {"kind": "function", "function": f"rewards.py:{task}", "options": options}
    stage = FAST | {"kind": kind, "model": "base", "rewards": [reward], "steps": steps, "learning_rate": rate,
                    "schedule": schedule, "sampling": {"max_new_tokens": tokens}, "beta": beta,
                    "missing_eos_penalty": 0.0}  # fmt: skip  # the tasks ask for answers of the full length
    result, _context = train(stage, seed=seed)
    scores = [value for _step, value in result.curves["reward"]]
    return sum(scores[:2]) / 2, sum(scores[-5:]) / 5, wanted


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_token_is_soon_learned(kind, train):
    first, last, wanted = learned(train, kind, "produce_a_token", 0)
    assert first < wanted / 2 < wanted <= last


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("task", ["produce_a_token", "sort_digits", "follow_a_format"])
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_every_task_is_learned(kind, task, seed, train):
    first, last, wanted = learned(train, kind, task, seed)
    assert first < wanted / 2 < wanted <= last


STARTS = ("Once upon a time", "One day, Tim", "Lily and Ben", "The dog", "Mom said", "There was a bird")
SENTENCES = '''
def short_sentences(prompts, responses, references):
    """Four full stops are worth 1."""
    return [min(1.0, response.count(".") / 4) for response in responses]
'''


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_model_that_tells_stories_learns_short_sentences(kind, seed, tmp_path, real_data):
    """Four full stops in 24 tokens. The stories stay stories: the KL is paid for, and stays bounded."""
    source = real_data / "stories260k"
    if not source.is_dir():
        pytest.skip(f"no story model at {source}")
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).save_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"{start}{more}"} for start in STARTS for more in ("", " was", " had a")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (tmp_path / "rewards.py").write_text(SENTENCES, "utf-8")
    stage = FAST | {
        "kind": kind, "model": "base", "steps": 30, "episodes": 48, "batch_size": 24, "learning_rate": 1e-3,
        "rewards": [{"kind": "function", "function": "rewards.py:short_sentences"}], "schedule": "constant",
        "sampling": {"max_new_tokens": 24}, "beta": 0.02, "missing_eos_penalty": 0.0,  # stories go on
    }  # fmt: skip
    recipe = Recipe.model_validate(
        {"name": "stories", "seed": seed, "model": {"base": "stories", "dtype": "float32"}, "data": {"held_out": 0.2},
         "stages": {"policy": stage}, "resources": {"device": "cpu"}}
    )  # fmt: skip
    data = {"prompts": tmp_path / "prompts.jsonl", "function:short_sentences": tmp_path / "rewards.py"}
    inputs = {"base": artifact("base", tmp_path / "base")}
    context = stage_context("policy", recipe, inputs, data, tmp_path / "output", tmp_path / "checkpoints")
    for path in (context.output, context.checkpoints):
        path.mkdir()
    result = run(recipe.stages["policy"], context)
    scores = [value for _step, value in result.curves["reward"]]
    assert scores[0] < 0.4
    assert sum(scores[-3:]) / 3 >= 0.65
    assert result.curves["kl"][-1][1] < 60
