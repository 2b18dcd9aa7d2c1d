"""Virtual tokens: what a model says behind them, through every pass that we make of it, against independent passes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModelForCausalLM, PromptTuningConfig

from alignment.errors import StageError
from alignment.models.adapter_kinds.prompt_start import add_soft_prompt
from alignment.models.adapter_kinds.soft_prompt import SoftPromptModel, load_soft_prompt, written_config
from alignment.models.families.head import own_logits, trunk_of
from alignment.models.families.lora_targets import without_weights
from alignment.models.prefix_sharing import share_prefixes
from alignment.models.tree_attention import can_be_planted
from alignment.plan.sizes import model_size
from alignment.recipe.stages.adapters import PrefixTuning, PromptTuning, PTuning, SoftPrompt
from alignment.records import Sampling
from alignment.rollouts.prefix_cache import PrefixCache
from alignment.rollouts.transformers_engine import TransformersEngine
from alignment.training.response_head import add_response_head
from tests.tiny_families import build, config

TOKENS = 4
KINDS: dict[str, SoftPrompt] = {
    "prompt": PromptTuning(kind="prompt", tokens=TOKENS),
    "prefix": PrefixTuning(kind="prefix", tokens=TOKENS),
    "p_tuning": PTuning(kind="p_tuning", tokens=TOKENS, hidden=24),
}
IDS = torch.tensor([[5, 9, 14, 3, 22, 7], [5, 9, 14, 8, 2, 0], [5, 9, 14, 3, 41, 0]])
MASK = torch.tensor([[1] * 6, [1] * 5 + [0], [1] * 5 + [0]])
# One family a quirk: learned positions, a part of the trunk called by the head, rotary positions, experts, windows.
FAMILIES = ["gpt2", "opt", "llama", "qwen3", "mixtral", "gemma2", "bloom"]


class Words:
    """A tokenizer whose words are numbers."""

    def __call__(self, text: str, **_options: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, tokens: Any, **_options: Any) -> str:
        return " ".join(map(str, tokens))


def soft(kind: str, family: str = "llama") -> SoftPromptModel:
    """A model with virtual tokens that are drawn, so that they are no word's."""
    model = add_soft_prompt(build(family), KINDS[kind], None).eval()
    torch.manual_seed(7)
    for weight in model.prompt_encoder.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model


@torch.no_grad()
def pefts(model: SoftPromptModel, ids: torch.Tensor, mask: torch.Tensor, family: str = "llama") -> torch.Tensor:
    """PEFT's own pass, on a model that nothing of ours is on."""
    theirs = PeftModelForCausalLM(build(family), copy.copy(model.peft_config["default"])).eval()
    theirs.prompt_encoder.load_state_dict(model.prompt_encoder.state_dict())
    logits: torch.Tensor = theirs(input_ids=ids, attention_mask=mask).logits
    return logits[:, -ids.shape[1] :]


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_pass_is_pefts(kind: str, family: str) -> None:
    """Whole, through the trunk as a tree of prefixes, and through the head in chunks: all as PEFT's pass."""
    if kind == "prefix" and family in ("gemma2", "bloom"):
        with pytest.raises(StageError, match="take prompt or p_tuning"):
            soft(kind, family)
        return
    model = soft(kind, family)
    expected = pefts(model, IDS, MASK, family)
    kept = MASK.bool()
    with torch.no_grad():
        ours = model(input_ids=IDS, attention_mask=MASK).logits
        assert ours.shape[:2] == IDS.shape
        torch.testing.assert_close(ours[kept], expected[kept], atol=2e-5, rtol=1e-4)
        with model.disable_adapter():
            plain = build(family)(input_ids=IDS, attention_mask=MASK).logits
            bare = model(input_ids=IDS, attention_mask=MASK).logits
            torch.testing.assert_close(bare, plain, atol=0, rtol=0)
        assert (expected - plain)[kept].abs().max() > 1e-2
        shares = share_prefixes(model.base_model)
        assert shares == (family in ("llama", "qwen3", "mixtral"))
        states = trunk_of(model.base_model)(input_ids=IDS, attention_mask=MASK).last_hidden_state
        torch.testing.assert_close(own_logits(model.base_model, states)[kept], expected[kept], atol=2e-5, rtol=1e-4)
    labels = IDS.masked_fill(MASK == 0, -100)
    add_response_head(model)
    read = model(input_ids=IDS, attention_mask=MASK, labels=labels, fused_lm_head=True, use_cache=False).log_probs
    wanted = expected[:, :-1].log_softmax(-1).gather(-1, IDS[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(read[kept[:, 1:]], wanted[kept[:, 1:]], atol=2e-5, rtol=1e-4)


class Seen:
    """A hook that notes the shapes of what a layer gives."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, _module: Any, _given: Any, output: Any) -> None:
        self.shapes.append(tuple(output.shape[:2]))


def test_a_tree_is_built_behind_them() -> None:
    """Where rows have more in common, one pass of the tree: the virtual tokens are read once for all rows."""
    for kind in KINDS:
        model = soft(kind)
        ids = torch.tensor([[5, 9, 14, 3, 22, 7, 11, 12, 13, last] for last in range(20, 28)])
        mask = torch.ones_like(ids)
        expected = pefts(model, ids, mask)
        decoder = trunk_of(model.base_model)
        share_prefixes(model.base_model)
        seen = Seen()
        hook = decoder.layers[0].register_forward_hook(seen)
        with torch.no_grad():
            states = decoder(input_ids=ids, attention_mask=mask).last_hidden_state
        hook.remove()
        assert seen.shapes == [(1, 9 + 8 + (0 if kind == "prefix" else TOKENS))]
        torch.testing.assert_close(own_logits(model.base_model, states), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_words_are_where_they_start(kind: str, family: str) -> None:
    """A fresh soft prompt of words is the base that has read these words (Li and Liang 2021, section 7.4)."""
    settings = type(KINDS[kind])(kind=kind, tokens=5, text="31 17 8")  # type: ignore[call-arg]
    model = add_soft_prompt(build(family), settings, Words()).eval()  # type: ignore[arg-type]
    row = IDS[:1]
    with torch.no_grad():
        words = torch.tensor([[31, 17, 8, 31, 17]])
        expected = build(family)(input_ids=torch.cat([words, row], dim=1)).logits[:, 5:]
        torch.testing.assert_close(model(input_ids=row).logits, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_greedy_answers_are_those_of_reading_all_anew(kind: str, family: str) -> None:
    """The sampler with its cache, rows of other lengths, a shared beginning; the cache of a conversation; beams."""
    if (kind, family) == ("prefix", "gemma2"):
        return
    model = soft(kind, family)
    prompts = [[5, 9, 14, 3, 22], [5, 9, 14], [5, 9, 14, 3]]
    expected = []
    for prompt in prompts:
        tokens = list(prompt)
        for _ in range(6):
            ids = torch.tensor([tokens])
            tokens.append(int(pefts(model, ids, torch.ones_like(ids), family)[0, -1].argmax()))
        expected.append(tuple(tokens[len(prompt) :]))
    sampling = Sampling(temperature=0.0, max_new_tokens=6)
    for share in (False, True):
        engine = TransformersEngine(model, Words(), stop_ids={95}, share_prefixes=share)  # type: ignore[arg-type]
        drawn = engine.generate(prompts, sampling=sampling, seeds=[0, 1, 2])
        assert [group[0].tokens for group in drawn] == [
            row[: row.index(95) + 1] if 95 in row else row for row in expected
        ]
    if family == "gemma2":
        return
    cache = PrefixCache(engine)
    for prompt, answer in zip(prompts, expected, strict=True):
        cache.begin(prompt)
        tokens = []
        logits = cache.read(prompt[len(cache.tokens) :])
        for _ in range(6):
            tokens.append(int(logits[0].argmax()))
            logits = cache.read(tokens[-1:])
        assert tuple(tokens) == answer
    one = Sampling(temperature=0.0, max_new_tokens=4, beams=2)
    found = engine.generate(prompts[:1], sampling=one, seeds=[0])[0][0].tokens
    assert len(found) == 4


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_folder_holds_what_is_said(kind: str, tmp_path: Path) -> None:
    """Loaded by PEFT alone, by us, and to be trained on: one function, and P-tuning's network is in none of them."""
    model = soft(kind)
    build("llama").save_pretrained(tmp_path / "base")
    config_written = written_config(model.peft_config["default"])
    model.save_pretrained(tmp_path / "soft", save_embedding_layers=False)
    config_written.base_model_name_or_path = str(tmp_path / "base")
    config_written.save_pretrained(tmp_path / "soft")
    assert isinstance(config_written, PromptTuningConfig) == (kind != "prefix")
    with torch.no_grad():
        expected = model(input_ids=IDS, attention_mask=MASK).logits
        bare = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "soft").eval()
        assert type(bare) is PeftModelForCausalLM
        found = bare(input_ids=IDS, attention_mask=MASK).logits[:, -IDS.shape[1] :]
        torch.testing.assert_close(found[MASK.bool()], expected[MASK.bool()], atol=2e-5, rtol=1e-4)
    for trainable in (False, True):
        ours = load_soft_prompt(build("llama"), str(tmp_path / "soft"), "default", trainable=trainable).eval()
        with torch.no_grad():
            torch.testing.assert_close(ours(input_ids=IDS, attention_mask=MASK).logits, expected, atol=2e-5, rtol=1e-4)
        assert any(weight.requires_grad for weight in ours.parameters()) == trainable
        assert not any(weight.requires_grad for weight in ours.base_model.parameters())


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "mixtral"])
def test_how_many_weights_are_trained(kind: str, family: str) -> None:
    model = add_soft_prompt(build(family), KINDS[kind], None)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert model_size(config(family)).trained(KINDS[kind]) == trained
    if family == "llama":  # hidden 32; 2 layers, 2 heads of keys of 8
        by_hand = {"prompt": 4 * 32, "prefix": 4 * 2 * 2 * 16, "p_tuning": 4 * 32 + 24 * 33 + 24 * 25 + 32 * 25}
        assert trained == by_hand[kind]


def test_recurrent_states_and_pictures_are_refused() -> None:
    for family in ("mamba", "jamba", "qwen3_next", "recurrent_gemma"):
        with pytest.raises(StageError, match="recurrent states"):
            add_soft_prompt(without_weights(config(family)), KINDS["prompt"], None)
    with pytest.raises(StageError, match="reads pictures"):
        add_soft_prompt(without_weights(config("gemma3_vision")), KINDS["prompt"], None)


def test_a_forest_is_not_planted_behind_them() -> None:
    assert can_be_planted(trunk_of(build("llama")))
    assert not can_be_planted(trunk_of(soft("prompt").base_model))


def test_gradients_reach_the_virtual_tokens_alone() -> None:
    """Those of the loss through the tree and the chunked head, against those of PEFT's pass."""
    for kind in KINDS:
        model = soft(kind)
        share_prefixes(model.base_model)
        add_response_head(model)
        labels = IDS.masked_fill(MASK == 0, -100)
        labels[:, 0] = -100  # which PEFT's last virtual token would predict
        model(input_ids=IDS, attention_mask=MASK, labels=labels, fused_lm_head=True).loss.backward()
        theirs = PeftModelForCausalLM(build("llama"), copy.copy(model.peft_config["default"])).eval()
        theirs.prompt_encoder.load_state_dict(model.prompt_encoder.state_dict())
        theirs(input_ids=IDS, attention_mask=MASK, labels=labels).loss.backward()
        for (name, ours), other in zip(
            model.prompt_encoder.named_parameters(), theirs.prompt_encoder.parameters(), strict=True
        ):
            assert ours.grad is not None, name
            assert ours.grad.abs().max() > 0, name
            torch.testing.assert_close(ours.grad, other.grad, atol=2e-5, rtol=1e-3)
        assert all(weight.grad is None for weight in model.base_model.parameters())
