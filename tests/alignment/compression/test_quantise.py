"""Quantised policies: their weights against roundings by hand, and exports that are read again before they count."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from alignment.compression.agreement import TokenAgreement, compare
from alignment.errors import StageError
from alignment.models.load import load_policy
from alignment.models.quantised import load_weights, quantisation, weight_bytes
from alignment.models.weights import held_parts, weight_faults
from alignment.recipe.stages.compression.quantise import QuantiseStage
from alignment.records import Artifact
from alignment.stage import StageResult
from alignment.stages.compression import quantise
from alignment.stages.compression.quantise import run

MakeContext = Callable[..., Any]
LOOSE = {"max_kl": 5.0, "max_new_tokens": 6, "limit": 5}
IDS = torch.tensor([[5, 80, 17, 200, 33, 6, 91]])
NF4 = (  # Dettmers et al. 2023, appendix E
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def quantised(
    make_context: MakeContext, folder: Path, base: Artifact, scheme: str, **more: Any
) -> tuple[StageResult, Path]:
    settings = QuantiseStage(kind="quantise", model="base", scheme=scheme, **(LOOSE | more))
    changes = {"stages.quantise": settings.model_dump(mode="json")}
    context = make_context(folder, "quantise", {"base": base}, changes=changes)
    return run(settings, context), context.output


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits[0].double()


def rounded(base: Artifact, rule: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The base with every linear layer's weights but the head's rounded by ``rule``."""
    model = AutoModelForCausalLM.from_pretrained(base.path)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.weight.data = rule(module.weight.data)
    return model


def by_row(weight: torch.Tensor) -> torch.Tensor:
    """Eight bits, one scale a row, by hand."""
    scale = weight.abs().amax(1, keepdim=True) / 127.5
    return (weight / scale).round().clamp(-128, 127) * scale


def by_codebook(weight: torch.Tensor) -> torch.Tensor:
    """The nearest of the sixteen levels, blocks of 64 scaled by their largest, by hand."""
    blocks, levels = weight.reshape(-1, 64), torch.tensor(NF4)
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = ((blocks / scale)[..., None] - levels).abs().argmin(-1)
    return (levels[nearest] * scale).view_as(weight)


@pytest.mark.parametrize(
    ("scheme", "method", "rule", "near"),
    [("int8", "torchao", by_row, 0.05), ("nf4", "bitsandbytes", by_codebook, 0.1)],  # it multiplies in bfloat16
)
def test_weights_are_those_rounded_by_hand(
    wide: Artifact, make_context: MakeContext, tmp_path: Path, scheme: str, method: str, rule: Any, near: float
) -> None:
    pytest.importorskip(method)
    result, output = quantised(make_context, tmp_path, wide, scheme)
    assert quantisation(output) == method
    [file] = output.glob("*.safetensors")
    assert not list(output.glob("*.bin")) + list(output.glob("*.pt"))
    with safe_open(file, "pt") as tensors:
        assert any(tensors.get_tensor(name).dtype in (torch.int8, torch.uint8) for name in tensors.keys())  # noqa: SIM118
    read, plain = load_weights(output, torch.float32, None), AutoModelForCausalLM.from_pretrained(wide.path)
    assert weight_bytes(read) == pytest.approx(result.metrics["weights_mb"] * 1e6)
    own, hand, exact = logits(read), logits(rounded(wide, rule)), logits(plain)
    assert (own - hand).abs().max() < near * (exact - exact.mean()).std()
    assert (own - hand).abs().max() < 0.5 * (own - exact).abs().max()  # it is that rounding, and not another


@pytest.mark.parametrize("scheme", ["int8_dynamic", "bnb_int8", "q8_0"])
def test_eight_bits_agree_and_take_less(wide: Artifact, make_context: MakeContext, tmp_path: Path, scheme: str) -> None:
    pytest.importorskip({"int8_dynamic": "torchao", "bnb_int8": "bitsandbytes"}.get(scheme, "gguf"))
    result, output = quantised(make_context, tmp_path, wide, scheme, max_kl=0.1)
    figures = result.metrics
    assert result.kind == "model"
    assert figures["kl_per_token"] < 0.1
    assert figures["equal_greedy"] > 0.8
    assert figures["disk_mb"] < 0.75 * figures["disk_mb_before"]
    assert figures["perplexity"] == pytest.approx(figures["perplexity_before"], rel=0.3)
    record = json.loads((output / "quantisation.json").read_text())
    assert record["scheme"] == scheme
    assert weight_faults(output) == []


def test_a_quantised_policy_is_loaded_and_answers_like_any_other(
    wide: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    _result, output = quantised(make_context, tmp_path, wide, "q8_0")
    context = make_context(tmp_path / "next", "sft", {"base": wide})
    artifact = Artifact(name="small", kind="model", version=1, digest="1", path=str(output), key="small")
    model, tokenizer = load_policy(artifact, wide, context.run)
    plain, _ = load_policy(wide, wide, context.run)
    assert tokenizer.chat_template
    assert torch.nn.functional.cosine_similarity(logits(model), logits(plain)).min() > 0.99


def test_an_export_that_does_not_agree_is_not_published(
    wide: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    with pytest.raises(
        StageError, match=r"the q4_0 export, read again by transformers, does not agree with base"
    ) as told:
        quantised(make_context, tmp_path, wide, "q4_0", max_kl=0.0, min_equal=1.0)
    assert "nothing is published" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_writer_that_forgets_how_rotary_pairs_lie_is_found_out(
    wide: Artifact, make_context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignment.compression import gguf_export

    monkeypatch.setattr(gguf_export, "paired", lambda weight, _heads: weight)
    with pytest.raises(StageError, match="does not agree"):
        quantised(make_context, tmp_path, wide, "q8_0", max_kl=0.1)


def test_a_file_that_changed_on_its_way_to_the_disk_is_found_out(
    wide: Artifact, make_context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is what is read again, not what was in memory."""
    pytest.importorskip("torchao")
    written = quantise.export

    def torn(folder: Path, tokenizer: Any, target: Path, scheme: str, **options: Any) -> None:
        written(folder, tokenizer, target, scheme, **options)
        [file] = target.glob("*.safetensors")
        content = bytearray(file.read_bytes())
        content[len(content) // 2 :] = bytes(reversed(content[len(content) // 2 :]))
        file.write_bytes(content)

    monkeypatch.setattr(quantise, "export", torn)
    with pytest.raises(StageError, match=r"does not agree|not finite"):
        quantised(make_context, tmp_path, wide, "int8", max_kl=0.1)


def test_agreement_by_hand() -> None:
    """Two tokens of three: ln 2 and 0 nats apart, one of two equally greedy."""
    found = TokenAgreement()
    sure, even = [0.0, -100.0, -100.0], [0.0, 0.0, -100.0]
    first = torch.tensor([sure, [-100.0, 0.0, -100.0]], dtype=torch.float64)
    second = torch.tensor([even, [-100.0, 0.0, -100.0]], dtype=torch.float64)
    second[0, 1] += 1e-9  # the other one of two is the likelier
    found.add(first, second, [0, 1])
    assert found.equal_share == 0.5
    assert found.kl_per_token == pytest.approx(0.5 * torch.log(torch.tensor(2.0)).item(), abs=1e-6)
    assert found.perplexities == pytest.approx((1.0, 2**0.5), abs=1e-6)


def test_rows_of_different_lengths_are_compared_as_each_alone(wide: Artifact) -> None:
    policy = AutoModelForCausalLM.from_pretrained(wide.path).eval()
    other = rounded(wide, by_row).eval()
    rows = [([5, 80, 17], [200, 33]), ([6], [91, 7, 8, 9]), ([40, 41, 42, 43, 44], [45])]
    together = compare(policy, other, rows, batch_size=3)
    total = 0.0
    for prompt, answer in rows:
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            p, q = (m(input_ids=ids).logits[0].double().log_softmax(-1) for m in (policy, other))
        total += float((p.exp() * (p - q)).sum(-1)[len(prompt) - 1 : -1].sum())
    assert together.tokens == 7
    assert together.kl == pytest.approx(total, rel=1e-3)


def test_torchaos_weights_are_looked_at_inside(wide: Artifact, make_context: MakeContext, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    from alignment.errors import NotFiniteError
    from alignment.models.weights import require_finite

    _result, output = quantised(make_context, tmp_path, wide, "int8")
    model = load_weights(output, torch.float32, None)
    weight = model.model.layers[0].mlp.up_proj.weight
    assert {part.dtype for part in held_parts(weight)} >= {torch.int8, torch.float32}
    next(part for part in held_parts(weight) if part.is_floating_point()).view(-1)[0] = float("nan")
    with pytest.raises(NotFiniteError, match="up_proj"):
        require_finite(model.named_parameters(), "it")
