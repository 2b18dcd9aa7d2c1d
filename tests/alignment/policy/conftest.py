"""A tiny policy, its tokenizer and its prompts, made in the test."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from alignment.policy.grpo.trainer import GroupTrainer
from alignment.policy.online.actor_critic import frozen_copy
from alignment.policy.online.episode_reward import EpisodeReward
from alignment.policy.online.trainer import Surroundings
from alignment.policy.ppo.trainer import PpoTrainer
from alignment.recipe.stages.grpo import GrpoStage, RlooStage
from alignment.recipe.stages.ppo import PpoStage
from alignment.records import Message, Prompt, Sampling
from alignment.reward.protocol import Component, Rewards
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


class Apart:
    """An engine over a copy of the policy, to which weights are pushed. ``deaf`` ones forget to take them over."""

    def __init__(self, policy, *, deaf=False):
        self.policy, self.deaf, self.version = copy.deepcopy(policy), deaf, None
        self.engine = TransformersEngine(self.policy, tiny_tokenizer(), stop_ids={EOS})

    def push(self, policy, version):
        if not self.deaf:
            self.policy.load_state_dict(policy.state_dict())
        self.version = version

    def generate(self, prompts, **options):
        groups = self.engine.generate(prompts, **options)
        return [[replace(completion, version=self.version) for completion in group] for group in groups]

    def begin(self, prompts, **options):
        groups = self.generate(prompts, **options)  # at once: the weights are those of now
        return lambda: groups


class Nines(EpisodeReward):
    """The share of nines among an answer's tokens, or what ``score`` says of an episode."""

    def __init__(self, score=None):
        super().__init__(Rewards([Component("nines", 1.0, None)]))
        self.score = score or (lambda episode: episode.completion.tokens.count(9) / 6)

    def __call__(self, episodes):
        self.scores = {"nines": [float(self.score(episode)) for episode in episodes]}
        self.means = {"reward.nines": sum(self.scores["nines"]) / len(episodes)}
        return self.scores["nines"]


def group_settings(kind="grpo", **options):
    defaults = {"kind": kind, "model": "base", "rewards": [{"kind": "length", "at_most": 3}], "steps": 3, "episodes": 8,
                "per_prompt": 4, "batch_size": 4, "learning_rate": 1e-2, "sampling": {"max_new_tokens": 6},
                "lora": None, "warmup": 0.0, "missing_eos_penalty": 0.0, "checkpoint_every": 1}  # fmt: skip
    return (GrpoStage if kind == "grpo" else RlooStage).model_validate(defaults | options)


def group_trainer(settings=None, *, policy=None, engine=None, score=None, **around):
    settings = settings or group_settings()
    policy = policy if policy is not None else tiny_policy()
    return GroupTrainer(
        settings,
        policy=policy,
        reference=frozen_copy(policy) if settings.beta else None,
        engine=engine or TransformersEngine(policy, tiny_tokenizer(), stop_ids={EOS}),
        reward=Nines(score),
        prompts=tiny_prompts(),
        around=Surroundings(**around),
    )


@pytest.fixture(scope="session")
def tiny():
    """The makers above, for test modules: there are no packages under tests to import them from."""
    return SimpleNamespace(policy=tiny_policy, tokenizer=tiny_tokenizer, prompts=tiny_prompts, settings=tiny_settings,
                           trainer=make_trainer, reward=count_nines, eos=EOS, vocabulary=VOCABULARY, apart=Apart,
                           group_settings=group_settings, group_trainer=group_trainer)  # fmt: skip
