"""The stages on a GPU: the steps of the processor, resumption to the bit, mixed precision, and memory that runs out.

Run them where there is one: ``CUDA_VISIBLE_DEVICES=0 python -m pytest -m slow tests/alignment/test_gpu.py``. Rounding
is stated: kernels sum in another order than the processor's, and float32 stays float32 (no TF32).
"""

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from alignment.chat import load_tokenizer
from alignment.errors import StageError
from alignment.models.memory import naming_what_ran_out
from alignment.precision import natural_precision
from alignment.records import Artifact, Sampling
from alignment.rollouts.transformers_engine import TransformersEngine
from alignment.stage import Progress, StageContext

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here, or CUDA_VISIBLE_DEVICES hides it"),
]
ROUNDING = 1e-3
REWARDS = [{"kind": "length_penalty", "unit": "characters", "free": 4, "full": 14}]
GROUP = {
    "model": "sft", "steps": 3, "episodes": 8, "per_prompt": 4, "batch_size": 4, "beta": 0.05, "learning_rate": 1e-3,
    "sampling": {"max_new_tokens": 6}, "lora": {"rank": 4, "alpha": 8}, "warmup": 0.0, "rewards": REWARDS,
    "checkpoint_every": 1,
}  # fmt: skip
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "sft": {"batch_size": 8, "epochs": 3, "checkpoint_every": 2},
    "dpo": {"batch_size": 8, "epochs": 2, "checkpoint_every": 2},
    "reward": {"batch_size": 8, "epochs": 2, "checkpoint_every": 2},
    "pair_classifier": {
        "kind": "pair_classifier", "preferences": "preferences", "batch_size": 8, "max_length": 200,
        "lora": {"rank": 4, "alpha": 8}, "checkpoint_every": 1,
    },
    "grpo": {"kind": "grpo", **GROUP},
    "rloo": {"kind": "rloo", **GROUP},
    "ppo": {
        "kind": "ppo", "model": "sft", "steps": 3, "episodes": 8, "epochs": 2, "batch_size": 4, "learning_rate": 1e-3,
        "sampling": {"max_new_tokens": 6}, "lora": {"rank": 4, "alpha": 8}, "warmup": 0.0, "rewards": REWARDS,
        "checkpoint_every": 1,
    },
}  # fmt: skip
Run = Callable[..., dict[str, Any]]


class DeathError(Exception):
    """What ends a run between two steps."""


@pytest.fixture
def run(
    base: Artifact,
    sft: Artifact,
    preferences: Artifact,
    make_context: Callable[..., StageContext],
    together: SimpleNamespace,
    tmp_path: Path,
) -> Run:
    """A stage in a folder of the test's on a device; returns its curves."""

    def on(folder: str, stage: str, device: str, dtype: str = "float32", die_at: int = 0) -> dict[str, Any]:
        def report(progress: Progress) -> None:
            if progress.step == die_at:
                raise DeathError

        inputs = {"base": base, "sft": sft, "preferences": preferences}
        changes = {"resources.device": device, "model.dtype": dtype}
        context = make_context(
            tmp_path / folder, stage, inputs, settings=SETTINGS[stage], changes=changes, report=report
        )
        import_module(together.MODULES[stage]).run(context.recipe.stages[stage], context)
        found: dict[str, Any] = json.loads((context.output / "curves.json").read_text())
        return found

    return on


def loss_of(curves: dict[str, Any]) -> list[float]:
    return [value for _step, value in curves.get("loss", curves.get("policy_loss", []))]


@pytest.mark.parametrize("stage", SETTINGS)
def test_the_first_loss_is_the_processors(stage: str, run: Run) -> None:
    """Later ones too where nothing is drawn; what is drawn may differ by a token once the weights do by rounding."""
    there, here = loss_of(run("there", stage, "cuda")), loss_of(run("here", stage, "cpu"))
    assert len(there) == len(here) >= 2
    drawn = stage in ("ppo", "grpo", "rloo")
    assert there[: 1 if drawn else None] == pytest.approx(here[: 1 if drawn else None], rel=ROUNDING, abs=ROUNDING)


@pytest.mark.parametrize("stage", SETTINGS)
def test_a_death_changes_nothing(stage: str, run: Run, tmp_path: Path) -> None:
    run("whole", stage, "cuda")
    with pytest.raises(DeathError):
        run("died", stage, "cuda", die_at=2)
    run("died", stage, "cuda")
    for name in ("adapter_model.safetensors", "model.safetensors"):
        one, other = tmp_path / "whole" / "output" / name, tmp_path / "died" / "output" / name
        assert one.exists() == other.exists()
        if one.exists():
            assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("stage", SETTINGS)
def test_bfloat16_trains(stage: str, run: Run) -> None:
    exact, mixed = loss_of(run("exact", stage, "cuda")), loss_of(run("mixed", stage, "cuda", "bfloat16"))
    assert len(mixed) == len(exact)
    assert mixed[0] == pytest.approx(exact[0], rel=0.05, abs=0.05)


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_the_same_run_gives_the_same_bits(stage: str, run: Run, tmp_path: Path) -> None:
    assert loss_of(run("first", stage, "cuda")) == loss_of(run("second", stage, "cuda"))
    first, second = (tmp_path / name / "output" / "adapter_model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_the_engine_draws_what_generate_draws_and_the_processors_likelihoods(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    here = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    there = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval().to("cuda")
    prompts = [[5, 9, 30], [40, 41, 42, 43, 44, 45], [7]]
    engine = TransformersEngine(there, tokenizer, stop_ids={-1})
    greedy = engine.generate(prompts, sampling=Sampling(temperature=0.0, max_new_tokens=12), seeds=range(3))
    for prompt, (answer,) in zip(prompts, greedy, strict=True):
        ids = torch.tensor([prompt], device="cuda")
        expected = there.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12,
                                  eos_token_id=None, pad_token_id=0)[0, len(prompt) :].tolist()  # fmt: skip
        assert list(answer.tokens) == expected
    drawn = engine.generate(prompts, sampling=Sampling(max_new_tokens=12), seeds=range(3))
    for prompt, (answer,) in zip(prompts, drawn, strict=True):
        ids = torch.tensor([[*prompt, *answer.tokens]])
        with torch.no_grad():
            logprobs = here(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected_logprobs = logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0]
        assert answer.logprobs is not None
        assert list(answer.logprobs) == pytest.approx(expected_logprobs.tolist(), abs=1e-4)


def test_a_gpu_of_this_kind_computes_in_bfloat16() -> None:
    expected = "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float32"
    assert natural_precision("auto") == expected


def test_memory_that_runs_out_is_said() -> None:
    free, _total = torch.cuda.mem_get_info()
    words = r"^sft: the GPU has no memory left; lower batch_size \(it is 8\)"
    with pytest.raises(StageError, match=words), naming_what_ran_out("sft", SimpleNamespace(batch_size=8)):
        torch.empty(2 * free, dtype=torch.uint8, device="cuda")
