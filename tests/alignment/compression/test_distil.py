"""Distillation: divergences by hand and by finite differences, students by count, and the stage on tiny models."""

import json
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from alignment.compression.divergences import divergence
from alignment.compression.students import kept_layers, remove_layers
from alignment.errors import StageError
from alignment.recipe.stages.compression.distil import DistilStage
from alignment.records import Artifact
from alignment.stages.compression.distil import check_vocabularies, run

KINDS = ("forward_kl", "reverse_kl", "jensen_shannon")
TEACHER = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
STUDENT = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("kind", "nats"),
    [
        ("forward_kl", 0.5 * log(2) - 0.25 * log(2)),
        ("reverse_kl", 0.5 * log(2) - 0.25 * log(2)),
        # the middle is (3, 3, 2) / 8: 1/2 log(4/3) + 1/4 log(2/3), the same from both sides
        ("jensen_shannon", 0.5 * log(4 / 3) + 0.25 * log(2 / 3)),
    ],
)
def test_divergences_by_hand(kind: Any, nats: float) -> None:
    assert divergence(STUDENT, TEACHER, kind).tolist() == pytest.approx([nats], abs=1e-12)


def test_the_two_directions_differ_where_one_is_sure() -> None:
    """p = (0.9, 0.1) and q = (0.5, 0.5), by hand."""
    sure = torch.tensor([[0.9, 0.1]], dtype=torch.float64).log()
    even = torch.zeros(1, 2, dtype=torch.float64)
    forward, reverse = (float(divergence(even, sure, kind)) for kind in ("forward_kl", "reverse_kl"))
    assert forward == pytest.approx(0.9 * log(1.8) + 0.1 * log(0.2))
    assert reverse == pytest.approx(0.5 * log(0.5 / 0.9) + 0.5 * log(0.5 / 0.1))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_among_the_teachers_likeliest_counts_as_one(kind: Any) -> None:
    """The teacher's first is told apart, the others are summed: (1/2, 1/2) against (1/4, 3/4)."""
    two = (torch.tensor([[a, b]], dtype=torch.float64).log() for a, b in ((0.25, 0.75), (0.5, 0.5)))
    assert float(divergence(STUDENT, TEACHER, kind, top_k=1)) == pytest.approx(float(divergence(*two, kind)))
    assert float(divergence(STUDENT, TEACHER, kind, top_k=3)) == float(divergence(STUDENT, TEACHER, kind))


def test_a_temperature_divides_both() -> None:
    """At temperature 1/2 the probabilities are squared: (4, 1, 1) / 6 and (1, 4, 1) / 6."""
    found = float(divergence(STUDENT, TEACHER, "forward_kl", temperature=0.5))
    assert found == pytest.approx((4 / 6) * log(4) + (1 / 6) * log(1 / 4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [None, 2])
def test_gradients_by_finite_differences(kind: Any, top_k: int | None) -> None:
    torch.manual_seed(0)
    student = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda own: divergence(own, teacher, kind, temperature=1.3, top_k=top_k), student)
    divergence(student, teacher, kind).sum().backward()
    assert teacher.grad is None


def test_layers_are_kept_evenly() -> None:
    assert kept_layers(30, 0.5) == [0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29]  # 7 × 29 / 14 = 14.5
    assert kept_layers(4, 0.5) == [0, 3]
    with pytest.raises(ValueError, match="at least two"):
        kept_layers(2, 0.5)


def test_a_student_is_its_teacher_where_removed_layers_did_nothing(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Layers whose outputs are zeroed add nothing to the residual stream."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2)
    ).eval()
    for place in (1, 2):
        for weight in (
            model.model.layers[place].self_attn.o_proj.weight,
            model.model.layers[place].mlp.down_proj.weight,
        ):
            torch.nn.init.zeros_(weight)
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        assert remove_layers(model, 0.5) == [0, 3]
        assert torch.allclose(model(input_ids=ids).logits, before, atol=1e-6)
        model.save_pretrained(tmp_path)
        read = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert torch.allclose(read(input_ids=ids, use_cache=True).logits, before, atol=1e-6)
    assert read.config.num_hidden_layers == 2


def distilled(make_context: Any, folder: Path, inputs: dict[str, Artifact], **settings: Any) -> tuple[Any, Path]:
    given = {"kind": "distil", "model": "base", "teacher": "sft", "epochs": 6, "batch_size": 12, "learning_rate": 3e-3,
             "warmup": 0, "schedule": "constant", "max_length": 64} | settings  # fmt: skip
    stage = DistilStage.model_validate(given)
    context = make_context(folder, "distil", inputs, changes={"stages.distil": stage.model_dump(mode="json")})
    return run(stage, context), context.output


@pytest.fixture(scope="module")
def taught(base: Artifact, make_context: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A teacher that is far from the base: trained on the demonstrations."""
    from alignment.durable_files import folder_digest
    from alignment.stages.sft import run as train

    context = make_context(tmp_path_factory.mktemp("taught"), "sft", {"base": base})
    train(context.recipe.stages["sft"], context)
    return Artifact(name="sft", kind="model", version=1, digest=folder_digest(context.output),
                    path=str(context.output), key="sft")  # fmt: skip


def independent(teacher: Artifact, base: Artifact, demonstrations: Path) -> float:
    """The mean forward KL of the base from the teacher over the assistant's tokens, from the text alone."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.path)
    student = AutoModelForCausalLM.from_pretrained(base.path).eval()
    own = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.path), teacher.path).eval()
    total, count = 0.0, 0
    for line in demonstrations.read_text().splitlines():
        user, assistant = (message["content"] for message in json.loads(line)["messages"])
        prompt = tokenizer(f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        answer = tokenizer(f"{assistant}<|im_end|>")["input_ids"]
        with torch.inference_mode():
            ids = torch.tensor([prompt + answer])
            p, q = (m(input_ids=ids).logits[0].double().log_softmax(-1) for m in (own, student))
        total += float((p.exp() * (p - q)).sum(-1)[len(prompt) - 1 : -1].sum())
        count += len(answer)
    return total / count


def test_the_first_loss_is_the_divergence_of_the_two(
    taught: Artifact, base: Artifact, make_context: Any, tmp_path: Path
) -> None:
    result, output = distilled(make_context, tmp_path, {"base": base, "sft": taught})
    losses = [value for _step, value in result.curves["loss"]]
    assert losses[0] == pytest.approx(independent(taught, base, tmp_path / "demonstrations.jsonl"), rel=1e-3)
    assert losses[-1] < 0.5 * losses[0]
    assert not (output / "adapter_config.json").exists()


@pytest.mark.parametrize("kind", ["reverse_kl", "jensen_shannon"])
def test_a_student_comes_nearer_on_its_own_answers(
    taught: Artifact, base: Artifact, make_context: Any, tmp_path: Path, kind: str
) -> None:
    result, _output = distilled(
        make_context,
        tmp_path,
        {"base": base, "sft": taught},
        source="on_policy",
        divergence=kind,
        max_new_tokens=8,
        epochs=12,
    )
    losses = [value for _step, value in result.curves["loss"]]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


def test_another_vocabulary_is_refused(base: Artifact) -> None:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer, config = AutoTokenizer.from_pretrained(base.path), AutoConfig.from_pretrained(base.path)
    check_vocabularies(tokenizer, tokenizer, config, config)
    other = AutoTokenizer.from_pretrained(base.path)
    other.add_tokens(["<new>"])
    with pytest.raises(StageError, match="other vocabularies"):
        check_vocabularies(tokenizer, other, config, config)


def test_settings_that_say_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="has weights of its own"):
        DistilStage(kind="distil", teacher="sft", layers=0.5, lora={"rank": 4})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="with source on_policy alone"):
        DistilStage(kind="distil", teacher="sft", max_new_tokens=8)
    with pytest.raises(ValueError, match="with source on_policy alone"):
        DistilStage(kind="distil", teacher="sft", source="on_policy")


@pytest.mark.parametrize("more", [{}, {"source": "on_policy", "max_new_tokens": 8}, {"layers": 0.5}])
def test_settings_survive_being_written(more: dict[str, Any]) -> None:
    stage = DistilStage(kind="distil", teacher="sft", **more)
    assert DistilStage.model_validate(stage.model_dump(mode="json")) == stage
