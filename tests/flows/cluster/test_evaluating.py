"""Evaluations and tournaments on a pool of Ray actors: the same artifact, to the bit, whoever asked or died."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment.durable_files import folder_digest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EVALUATION = {
    "kind": "evaluate", "model": "sft", "against": ["base", "other"], "raters": {"rubric": "rubric.yaml", "noise": 0.2},
    "reward": "reward", "judge": {"kind": "reward_model", "model": "reward"}, "batch_size": 2, "kl_prompts": 5,
    "sampling": {"temperature": 0.0, "max_new_tokens": 24}, "metrics": [{"kind": "perplexity"}],
}  # fmt: skip
TOURNAMENT = {
    "kind": "tournament", "model": "base", "policies": ["sft", "other"], "reward": "reward", "best_of": 2,
    "judge": {"kind": "label_probabilities", "model": "sft", "min_label_mass": 0.0}, "batch_size": 2, "kl_prompts": 3,
    "sampling": {"temperature": 0.0, "max_new_tokens": 12}, "part": "all",
}  # fmt: skip
STAGES = {"evaluated": EVALUATION, "played": TOURNAMENT}
OTHER = {"kind": "sft", "epochs": 1, "batch_size": 4, "learning_rate": 1e-2, "max_length": 64, "lora": None}


def changes(stage: str, **more: Any) -> dict[str, Any]:
    return {"stages.other": OTHER, f"stages.{stage}": STAGES[stage], **more}


@pytest.fixture(scope="module")
def ready(run: Any) -> Any:
    """The versions that are asked: an adapter, whole weights and the base; and the reward model."""
    run.need("sft", "responses", "preferences", "reward")
    run.made["other"], _heard = run("other", "before", {"stages.other": OTHER})
    return run


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_two_workers_find_what_one_finds(ready: Any, stage: str) -> None:
    one, alone = ready(stage, f"one-{stage}", changes(stage))
    two, together = ready(stage, f"two-{stage}", changes(stage, **{"resources.workers": 2}))
    assert one.key == two.key
    assert two.digest == folder_digest(Path(two.path)) == one.digest
    assert two.metrics == one.metrics
    assert two.tokens_sampled == one.tokens_sampled
    assert len(together.steps) == len(alone.steps) >= 9
    assert together.steps[-1] == alone.steps[-1]
    assert two.cpu_seconds > 0


def test_a_killed_actor_changes_nothing_and_nothing_is_asked_twice(ready: Any, tools: SimpleNamespace) -> None:
    one, alone = ready("evaluated", "undisturbed", changes("evaluated"))  # not from the cache: its steps are heard
    root = ready.root / "killed"
    killer = tools.Killer(root, "1", lambda: len(list(root.glob("partial/*/checkpoints/answers-*.jsonl"))) >= 2)
    two, heard = ready("evaluated", "killed", changes("evaluated", **{"resources.workers": 2}))
    assert killer.hit is not None
    assert two.digest == one.digest
    assert [progress.step for progress in heard.steps][-1] == alone.steps[-1].step
    assert len(heard.steps) == len(alone.steps)
