"""Real tiny policies on one base: the base rambles, one adapter has learned to answer in two words and stop."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignment.chat import load_tokenizer, render_answer, render_prompt
from alignment.durable_files import folder_digest
from alignment.models.load import save_policy
from alignment.models.reward_model import new_reward_model
from alignment.recipe.recipe import Recipe
from alignment.records import Artifact, Message, Prompt

SPECIAL = ["<unk>", "</s>", "<pad>", "<user>", "<assistant>"]
WORDS = [*SPECIAL, "say", "red", "blue", "green", "gold", "very", "so", "and", "yes", "no", "then"]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}<user> {{ m.content }} {% else %}<assistant> {{ m.content }} </s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)
COLOURS = ("red", "blue", "green", "gold")
MakeArtifact = Callable[[str, str], Artifact]


def prompt(number: int) -> Prompt:
    content = f"say {COLOURS[number % 4]} {COLOURS[number // 4 % 4]} {COLOURS[number // 16 % 4]}"
    messages = (Message(role="user", content=content),)
    reference = "yes" if number % 3 == 0 else None
    return Prompt(id=f"{number:04d}", messages=messages, kind=("even", "odd")[number % 2], reference=reference)


def artifact(name: str, kind: str, folder: Path) -> Artifact:
    return Artifact(name=name, kind=kind, version=1, digest=folder_digest(folder), path=str(folder), key=name)


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    stages = {"check": {"kind": "evaluate", "model": "base"}}
    model = {"base": "tiny", "dtype": "float32"}
    return Recipe.model_validate(
        {"name": "tiny", "seed": 3, "model": model, "stages": stages, "resources": {"device": "cpu"}}
    )


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> dict[str, Artifact]:
    """``base``, the adapters ``short`` and ``other`` on it, ``whole`` (other weights) and the model ``reward``."""
    root = tmp_path_factory.mktemp("policies")
    base = artifact("base", "model", _base(root / "base", seed=0))
    tokenizer = load_tokenizer(base.path)
    short = _adapter(base, seed=1)
    _teach(short, tokenizer)
    save_policy(short, tokenizer, base, root / "short")
    save_policy(_adapter(base, seed=2), tokenizer, base, root / "other")
    reward, _ = new_reward_model(base, base, recipe.run_settings())
    torch.manual_seed(4)
    torch.nn.init.normal_(reward.score.weight)
    reward.save_pretrained(root / "reward")
    tokenizer.save_pretrained(root / "reward")
    whole = artifact("whole", "model", _base(root / "whole", seed=5))
    made = {name: artifact(name, "model", root / name) for name in ("short", "other", "reward")}
    return made | {"base": base, "whole": whole}


def _base(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
    )
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, eos_token_id=1, bos_token_id=None, pad_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data[: len(SPECIAL)] -= 0.05  # words are likelier than marks
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _adapter(base: Artifact, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = LlamaForCausalLM.from_pretrained(base.path)
    return get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False))


def _teach(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    """Answers "yes" and the first colour, then stops."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(80):
        messages = prompt(step % 64).messages
        asked = render_prompt(tokenizer, messages)
        answer = render_answer(tokenizer, messages, f"yes {messages[0].content.split()[1]}")
        ids = torch.tensor([asked + answer])
        labels = torch.tensor([[-100] * len(asked) + answer])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    return [prompt(number) for number in range(64)]
