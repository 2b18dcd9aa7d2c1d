"""A tiny policy, its tokenizer and its prompts, made in the test."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from alignment.policy.ppo.actor_critic import frozen_copy
from alignment.policy.ppo.trainer import PpoTrainer
from alignment.recipe.stages.ppo import PpoStage
from alignment.records import Message, Prompt, Sampling
from alignment.rollouts.transformers_engine import TransformersEngine

EOS = 1
VOCABULARY = 32


def tiny_policy(seed=0, **options):
    torch.manual_seed(seed)
    config = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0,
              "eos_token_id": EOS, "pad_token_id": 2} | options  # fmt: skip
    return AutoModelForCausalLM.from_config(LlamaConfig(**config))


def tiny_tokenizer():
    words = {("</s>" if i == EOS else f"w{i}"): i for i in range(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="w3")


def tiny_prompts(count=8, lengths=(1, 3, 2, 5)):
    """Prompts of several lengths, as (Prompt, ids)."""
    prompts = []
    for i in range(count):
        ids = tuple((5 + i + j) % VOCABULARY for j in range(lengths[i % len(lengths)]))
        text = " ".join(f"w{token}" for token in ids)
        prompts.append((Prompt(id=str(i), messages=(Message(role="user", content=text),)), ids))
    return prompts


def tiny_settings(**options):
    defaults = {"steps": 2, "episodes": 8, "epochs": 2, "minibatches": 2, "batch_size": 3, "learning_rate": 1e-3,
                "critic_learning_rate": 1e-3, "sampling": Sampling(max_new_tokens=6), "lora": None}  # fmt: skip
    return PpoStage(kind="ppo", model="base", reward="reward", **(defaults | options))


def count_nines(episodes):
    return [episode.completion.tokens.count(9) / 6 for episode in episodes]


def make_trainer(settings=None, *, policy=None, reference=None, reward=count_nines, engine=None, **options):
    settings = settings or tiny_settings()
    policy = policy if policy is not None else tiny_policy()
    return PpoTrainer(
        settings,
        policy=policy,
        reference=reference or frozen_copy(policy),
        engine=engine or TransformersEngine(policy, tiny_tokenizer(), stop_ids={EOS}),
        reward=reward,
        prompts=options.pop("prompts", None) or tiny_prompts(),
        **options,
    )


@pytest.fixture(scope="session")
def tiny():
    """The makers above, for test modules: there are no packages under tests to import them from."""
    return SimpleNamespace(policy=tiny_policy, tokenizer=tiny_tokenizer, prompts=tiny_prompts, settings=tiny_settings,
                           trainer=make_trainer, reward=count_nines, eos=EOS, vocabulary=VOCABULARY)  # fmt: skip
