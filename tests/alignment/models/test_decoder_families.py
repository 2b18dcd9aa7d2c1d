"""Every family of decoders that people use, tiny and with random weights: what is trained is the model's own.

A few families, one for each quirk, are tried always; the others are slow by their number alone.
"""

import copy
import runpy
from typing import Any

import pytest
import torch
from peft import inject_adapter_in_model
from trl.trainer.utils import add_fused_lm_head

from alignment.errors import StageError
from alignment.judges.label_logits import LabelReader
from alignment.models.adapters import add_lora, lora_config
from alignment.models.families.head import HeadKind, head_kind, own_logits, trunk_of
from alignment.models.families.lora_targets import lora_targets
from alignment.models.prefix_sharing import share_prefixes
from alignment.plan.sizes import model_size
from alignment.policy.online.actor_critic import check_head
from alignment.recipe.base import Lora
from alignment.records import Sampling
from alignment.rollouts.transformers_engine import TransformersEngine
from alignment.training.response_head import add_response_head, read_tokens
from tests.tiny_families import DECODERS, build, config

QUIRKS = {
    "llama", "gpt2", "falcon", "falcon_alibi", "mixtral", "granitemoe", "deepseek_v3", "llama4", "gemma2",
    "gemma3_vision", "cohere", "mamba", "falcon_h1", "qwen3_next", "recurrent_gemma", "bert_decoder",
    "modernbert_decoder",
}  # fmt: skip
FAMILIES = [name if name in QUIRKS else pytest.param(name, marks=pytest.mark.slow) for name in DECODERS]
OWN_HEADS = {
    "gemma2", "gemma4", "cohere", "granite", "granitemoe", "falcon_h1", "recurrent_gemma", "bert_decoder",
    "modernbert_decoder",
}  # fmt: skip
LORA = Lora(rank=4, alpha=8)
# By hand: the adapted weights of a model's two layers. Attention has four matrices (or fewer where they are fused), a
# gated feed-forward part three, experts two parameters whatever their number.
ADAPTED = {
    "gpt2": 8, "gpt_neox": 8, "opt": 12, "bloom": 8, "falcon": 8, "falcon_alibi": 8, "llama": 14, "mistral": 14,
    "llama4": 8 + 3 + 3 + 2, "mixtral": 8 + 4, "gemma": 14, "gemma2": 14, "gemma3": 14, "gemma3_vision": 14,
    "gemma4": 14 + 4 + 1, "qwen2": 14, "qwen3": 14, "qwen2_moe": 8 + 4 + 6, "qwen3_moe": 8 + 4,
    "qwen3_next": 4 + 3 + 4 + 6, "deepseek_v2": 10 + 3 + 3 + 2, "deepseek_v3": 10 + 3 + 3 + 2, "glm4": 12,
    "glm4_moe": 8 + 3 + 3 + 2, "phi3": 8, "phimoe": 8 + 4, "olmo2": 14, "olmoe": 8 + 4, "stablelm": 14, "smollm3": 14,
    "cohere": 14, "granite": 14, "granitemoe": 8 + 4, "gpt_oss": 8 + 4, "mamba": 2, "falcon_h1": 2 + 8 + 6,
    "jamba": 1 + 3 + 4 + 2, "recurrent_gemma": 3 + 4 + 6, "bert_decoder": 13, "modernbert_decoder": 13,
}  # fmt: skip


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    """Four rows (4, 17) that begin alike, one of them shorter; labels on what comes behind."""
    generator = torch.Generator().manual_seed(1)
    head = torch.randint(3, 90, (1, 12), generator=generator)
    ids = torch.cat([head.repeat(4, 1), torch.randint(3, 90, (4, 5), generator=generator)], 1)
    mask = torch.ones_like(ids)
    ids[1, -2:], mask[1, -2:] = 0, 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :10] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loud(name: str, **changes: Any) -> Any:
    """A model whose logits are so large that a cap shows."""
    model = build(name, **changes)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(4)
    return model


def plain_logprobs(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(4, 16): the labels' log-probabilities by the model's own logits, 0 where there is no label."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    labels = batch["labels"][:, 1:]
    logps = logits[:, :-1].float().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return logps * (labels != -100)


def routed(model: Any) -> dict[str, bool]:
    return {"output_router_logits": True} if hasattr(model.config.get_text_config(), "output_router_logits") else {}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_trained_are_the_models_own_logits(name: str, batch: dict[str, torch.Tensor]) -> None:
    model = loud(name)
    ours = copy.deepcopy(model)
    share_prefixes(ours)
    add_fused_lm_head(ours)
    add_response_head(ours)
    expected = plain_logprobs(model, batch)
    for options in ({}, routed(model)):  # with the routers' scores, and as a tree without
        read = ours(**batch, fused_lm_head=True, **options)
        assert (read.log_probs - expected).abs().max() < 2e-5 * max(1, expected.abs().max())
    expected.sum().backward()
    ours.zero_grad()
    read.log_probs.sum().backward()
    weight, other = (which.get_input_embeddings().weight.grad for which in (ours, model))
    torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-4 * other.abs().max().item())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_kind_of_its_head(name: str) -> None:
    assert head_kind(build(name)) == (HeadKind.OWN if name in OWN_HEADS else HeadKind.PLAIN)


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite", "recurrent_gemma"])
def test_in_bfloat16_too_where_logits_are_small(name: str) -> None:
    model = build(name, dtype=torch.bfloat16)
    assert model.get_output_embeddings().weight.dtype == torch.bfloat16
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.1)
    check_head(model)
    assert head_kind(model) == HeadKind.OWN
    states = 300 * torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.tensor([4, 5, 6])
    expected = own_logits(model, states).float().log_softmax(-1)[torch.arange(3), labels]
    capped = model.get_output_embeddings()(states).float().log_softmax(-1)[torch.arange(3), labels]
    assert (expected - capped).abs().max() > 0.5
    torch.testing.assert_close(read_tokens(model, states, labels)[0], expected)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "olmoe", "granitemoe", "phimoe", "gpt_oss", "jamba"])
def test_the_routers_loss_is_the_models_own(name: str, batch: dict[str, torch.Tensor]) -> None:
    model = build(name)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    expected = model(**inputs, output_router_logits=True, use_cache=False).aux_loss
    share_prefixes(model)
    add_fused_lm_head(model)
    add_response_head(model)
    read = model(**batch, fused_lm_head=True, output_router_logits=True)
    torch.testing.assert_close(read.aux_loss, expected)
    plain = -(read.log_probs.sum() / (batch["labels"][:, 1:] != -100).sum())
    coefficient = model.config.get_text_config().router_aux_loss_coef
    torch.testing.assert_close(read.loss, plain + coefficient * expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_sit_on_every_matrix_of_the_decoder(name: str, batch: dict[str, torch.Tensor]) -> None:
    model = build(name)
    adapted = add_lora(copy.deepcopy(model), LORA)
    before = plain_logprobs(model, batch)
    trained = {key: weight for key, weight in adapted.named_parameters() if weight.requires_grad}
    seconds = [weight for key, weight in trained.items() if "lora_B" in key]
    assert len(seconds) == ADAPTED[name]
    assert not [key for key in trained if "router" in key or "vision" in key or ".gate." in key]
    torch.testing.assert_close(plain_logprobs(adapted, batch), before)
    plain_logprobs(adapted, batch).sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in seconds)
    size = model_size(config(name))
    assert sum(weight.numel() for weight in trained.values()) == size.adapter(LORA)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "falcon", "mamba"])
def test_an_adapter_survives_its_folder_and_its_merge(name: str, batch: dict[str, torch.Tensor], tmp_path: Any) -> None:
    from peft import PeftModel

    model = build(name)
    adapted = add_lora(copy.deepcopy(model), LORA).eval()
    with torch.no_grad():
        for key, weight in adapted.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.1)
    expected = plain_logprobs(adapted, batch)
    assert (expected - plain_logprobs(model, batch)).abs().max() > 0.1
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    torch.testing.assert_close(plain_logprobs(again, batch), expected)
    torch.testing.assert_close(plain_logprobs(again.merge_and_unload(), batch), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "falcon", "mixtral"])
def test_a_critic_of_its_own_is_adapted(name: str, batch: dict[str, torch.Tensor]) -> None:
    trunk = trunk_of(build(name))
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    before = trunk(**inputs).last_hidden_state
    critic = inject_adapter_in_model(lora_config(trunk, LORA), copy.deepcopy(trunk))
    assert sum("lora_B" in key for key, weight in critic.named_parameters() if weight.requires_grad) == ADAPTED[name]
    torch.testing.assert_close(critic(**inputs).last_hidden_state, before)


def test_experts_cannot_drop_inputs() -> None:
    with pytest.raises(StageError, match="set it to 0"):
        add_lora(build("mixtral"), Lora(rank=4, alpha=8, dropout=0.1))


def test_the_plans_numbers_of_a_mixture_by_hand() -> None:
    """Two layers of queries and outputs 32 x 32, keys and values 32 x 16, four experts of 32 x 96 and 48 x 32."""
    size = model_size(config("mixtral"))
    attention, experts = 2 * 32 * 32 + 2 * 32 * 16, 32 * 96 + 48 * 32
    assert size.matrix == 2 * (attention + 2 * experts)  # two of four experts for each token
    assert size.adapter(LORA) == 4 * 2 * (2 * 64 + 2 * 48 + 4 * (32 + 96 + 48 + 32))
    assert len(lora_targets(build("mixtral"))) == 12


@pytest.mark.parametrize("name", FAMILIES)
def test_two_answers_a_prompt_are_the_likeliest_tokens_of_whole_passes(name: str) -> None:
    model = build(name)
    prompts = [[5, 6, 7, 8, 9], [10, 11, 12]]
    tokenizer: Any = type("Words", (), {"decode": lambda _self, ids, **_: str(ids)})()
    engine = TransformersEngine(model, tokenizer, stop_ids={1})
    drawn = engine.generate(prompts, sampling=Sampling(temperature=0, max_new_tokens=4), seeds=[0] * 4, per_prompt=2)
    for prompt, answers in zip(prompts, drawn, strict=True):
        row = list(prompt)
        for _ in range(4):
            with torch.no_grad():
                row.append(int(model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
            if row[-1] == 1:
                break
        assert [list(answer.tokens) for answer in answers] == [row[len(prompt) :]] * 2


class Letters:
    """A tokenizer of numbers: " A" is 40 and " B" 41."""

    pad_token_id = 0

    def decode(self, ids: Any) -> str:
        return " ".join(map(str, ids))

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        words = {"A": 40, "B": 41}
        return {"input_ids": [words.get(word) or int(word) for word in text.split()]}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_label_judge_reads_the_models_own_logits(name: str) -> None:
    model = loud(name)
    rows = [[5, 6, 7, 8, 9, 20], [5, 6, 7, 8, 10, 20], [5, 6, 7, 20]]
    reader = LabelReader(model, Letters(), ("A", "B"), [20], [5, 6, 7])
    for row, (logits, share) in zip(rows, reader.read(rows), strict=True):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].float()
        assert logits == pytest.approx(expected[[40, 41]].tolist(), rel=1e-4, abs=1e-3)
        assert share == pytest.approx(float(expected.softmax(-1)[[40, 41]].sum()), rel=1e-2, abs=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_its_trunk_makes_hidden_states(name: str) -> None:
    model = build(name)
    trunk = trunk_of(model)
    assert trunk is not model
    assert trunk(input_ids=torch.tensor([[3, 4]]), use_cache=False).last_hidden_state.shape == (1, 2, 32)


def test_the_table_in_the_documentation_is_what_the_models_do() -> None:
    module = runpy.run_path("scripts/write_families.py")
    assert module["PAGE"].read_text("utf-8") == module["page"]()
