"""Sharded training in two processes over gloo: the steps and the artifact of whole models, from half of the memory.

The processes are forks of the test; tests/flows/cluster does the same on Ray.
"""

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback

from alignment import training
from alignment.records import Artifact
from alignment.stage import StageContext

ROUNDING = 1e-4  # relative, of each point of a loss curve in float32: the order of sums alone differs
NARROW_ROUNDING = 2e-2  # in bfloat16, whose numbers have 8 bits
REWARDS = [{"kind": "length_penalty", "unit": "characters", "free": 4, "full": 14}]
GROUP = {
    "model": "sft", "steps": 3, "episodes": 8, "per_prompt": 4, "batch_size": 4, "beta": 0.05, "learning_rate": 1e-2,
    "sampling": {"max_new_tokens": 6}, "lora": {"rank": 4, "alpha": 8}, "warmup": 0.0, "rewards": REWARDS,
}  # fmt: skip
WHOLE = {"lora": None, "learning_rate": 1e-3}
SETTINGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "sft": ("sft", {"batch_size": 8, "epochs": 2}),  # 11 demonstrations: 8 and 3
    "sft, all weights": ("sft", {"batch_size": 8, "epochs": 2, **WHOLE, "gradient_checkpointing": True}),
    "dpo": ("dpo", {"batch_size": 8, "epochs": 2, "snapshot_every": 2}),
    "dpo, all weights": ("dpo", {"model": "base", "batch_size": 8, "epochs": 2, "snapshot_every": 2, **WHOLE}),
    "reward": ("reward", {"batch_size": 10, "epochs": 6, "gradient_accumulation": 2}),
    "reward, all weights": ("reward", {"batch_size": 8, "epochs": 2, **WHOLE}),
    "pair_classifier": ("pair_classifier", {"kind": "pair_classifier", "preferences": "preferences", "batch_size": 8,
                                            "max_length": 200, "lora": {"rank": 4, "alpha": 8}}),
    "grpo": ("grpo", {"kind": "grpo", **GROUP}),
    "rloo, all weights": ("rloo", {"kind": "rloo", **GROUP, **WHOLE, "model": "base"}),
}  # fmt: skip
MakeContext = Callable[..., StageContext]


class Holdings(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Writes what this process holds after each step: numbers of the model's weights and of the optimizer's moments."""

    def __init__(self, context: StageContext) -> None:
        self.path = context.output.parent / f"holds-{context.rank}.json"

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        def held(tensor: Any) -> int:
            return int(getattr(tensor, "_local_tensor", tensor).numel())

        weights = list(model.parameters())
        moments = [
            value
            for one in optimizer.state.values()
            for name, value in one.items()
            if name in ("exp_avg", "exp_avg_sq")
        ]
        trained = [weight for weight in weights if weight.requires_grad]
        found = {
            "weights": [sum(map(held, weights)), sum(weight.numel() for weight in weights)],
            "moments": [sum(map(held, moments)), 2 * sum(weight.numel() for weight in trained)],
        }
        self.path.write_text(json.dumps(found))


NARROW = [("sft", "bfloat16"), ("dpo", "bfloat16"), ("sft, all weights", "bfloat16")]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dtype"), [*((kind, "float32") for kind in SETTINGS), *NARROW])
def test_parts_of_a_model_take_the_steps_of_the_whole(
    kind: str, dtype: str, base: Artifact, sft: Artifact, preferences: Artifact, make_context: MakeContext,
    tmp_path: Path, together: SimpleNamespace, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    stage, settings = SETTINGS[kind]
    import_module(together.MODULES[stage])  # once, before the forks
    inputs = {"base": base, "sft": sft, "preferences": preferences}

    def watched(trainer: Any, context: StageContext) -> None:
        prepare(trainer, context)
        trainer.add_callback(Holdings(context))

    prepare = training.prepare_trainer
    monkeypatch.setattr(training, "prepare_trainer", watched)

    def contexts(folder: str, workers: int) -> list[StageContext]:
        made = []
        for rank in range(workers):
            changes = {"resources.workers": 2, "resources.sharding": "fsdp"} if workers > 1 else {}
            changes["model.dtype"] = dtype
            context = make_context(tmp_path / folder, stage, inputs, settings=settings, changes=changes)
            lines = context.data["demonstrations"].read_text().splitlines(keepends=True)
            context.data["demonstrations"].write_text("".join(lines[:11]))
            if rank:
                context.output = tmp_path / folder / f"scratch-{rank}"
            made.append(context)
        return made

    together.in_processes(contexts("one", 1))
    together.in_processes(contexts("two", 2))
    one, two = (json.loads((tmp_path / name / "output" / "curves.json").read_text()) for name in ("one", "two"))
    assert len(one["loss"]) >= 3
    rounding = ROUNDING if dtype == "float32" else NARROW_ROUNDING
    assert dict(two["loss"]) == pytest.approx(dict(one["loss"]), rel=rounding, abs=rounding / 10)
    assert dict(two["grad_norm"]) == pytest.approx(dict(one["grad_norm"]), rel=10 * rounding, abs=rounding)
    same_weights(tmp_path / "one" / "output", tmp_path / "two" / "output", 20 * rounding)
    files = [
        {str(p.relative_to(tmp_path / name)) for p in (tmp_path / name / "output").rglob("*")}
        for name in ("one", "two")
    ]
    assert files[0] == files[1]
    assert not (tmp_path / "two" / "scratch-1").exists()  # rank 0 alone writes
    figures = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert set(figures[0]) == set(figures[1])
    whole = json.loads((tmp_path / "one" / "holds-0.json").read_text())
    parts = [json.loads((tmp_path / "two" / f"holds-{rank}.json").read_text()) for rank in range(2)]
    for name, (held, all_of_it) in whole.items():
        assert held == all_of_it
        assert sum(part[name][0] for part in parts) == all_of_it
        for part in parts:
            assert part[name][0] == pytest.approx(all_of_it / 2, rel=0.02), name  # a row more or less of each matrix


def same_weights(one: Path, two: Path, rounding: float) -> None:
    """Names, shapes, formats and values of every safetensors file below two folders."""
    from safetensors.torch import load_file

    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files
    for file in files:
        left, right = load_file(one / file), load_file(two / file)
        assert left.keys() == right.keys()
        for name, weight in left.items():
            assert (weight.shape, weight.dtype) == (right[name].shape, right[name].dtype)
            difference = float((weight.double() - right[name].double()).norm())
            assert difference <= rounding * float(weight.double().norm()) + 1e-6, (name, difference)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "sft, all weights", "dpo"])
def test_a_killed_worker_changes_nothing(
    kind: str, base: Artifact, sft: Artifact, preferences: Artifact, make_context: MakeContext,
    tmp_path: Path, together: SimpleNamespace,
) -> None:  # fmt: skip
    stage, settings = SETTINGS[kind]
    import_module(together.MODULES[stage])
    inputs = {"base": base, "sft": sft, "preferences": preferences}
    changes = {"resources.workers": 2, "resources.sharding": "fsdp"}

    def make(folder: Path) -> StageContext:
        settled = {**settings, "epochs": 8, "checkpoint_every": 2}
        return make_context(folder, stage, inputs, settings=settled, changes=changes)

    killed, whole = together.with_a_death_and_without(make, tmp_path)
    assert killed == whole
