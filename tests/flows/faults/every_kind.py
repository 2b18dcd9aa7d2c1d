"""One recipe in which every kind of stage stands once, each a second or two of work on the tiny model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

LORA = {"rank": 4, "alpha": 8}
RATERS = {"rubric": "rubric.yaml", "noise": 0.2}
REWARDS = [{"kind": "length_penalty", "unit": "characters", "free": 4, "full": 14}]
SHORT = {"max_new_tokens": 8}
GREEDY = {"temperature": 0.0, "max_new_tokens": 10}
JUDGE = {"kind": "label_probabilities", "model": "base", "question": "Which?", "min_label_mass": 0.0}
RL = {
    "model": "sft", "steps": 4, "episodes": 8, "batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": 1,
    "sampling": SHORT, "lora": LORA,
}  # fmt: skip
# What the others begin with: the tiny model reads on.
FIRST: dict[str, dict[str, Any]] = {
    "tokenizer": {"kind": "tokenizer", "vocabulary": 300},
    "pretrain": {
        "kind": "pretrain", "model": "base", "max_length": 32, "batch_size": 4, "held_out": 0.2, "checkpoint_every": 1,
        "learning_rate": 1e-4,
    },
}  # fmt: skip
# By the stage's name, which is its kind where no other stage needs to name it: every kind but those of `tiny.yaml`.
STAGES: dict[str, dict[str, Any]] = {
    "outside_model": {"kind": "outside_model"},
    "human_preferences": {"kind": "human_preferences", "responses": "responses", "votes_per_comparison": 1, "pairs": 4},
    "preference_file": {"kind": "preference_file"},
    "synthesis": {
        "kind": "synthesis", "models": ["base", "sft"], "principles": {"brief": "Be brief.", "kind": "Be kind."},
        "per_prompt": 4, "sampling": SHORT, "batch_size": 8,
    },
    "judge": {"kind": "judge", "responses": "responses", "calibration": "preferences", "judge": JUDGE},
    "constitution": {
        "kind": "constitution", "responses": "responses", "writer": {"model": "sft", "max_tokens": 24},
        "principles": [{"name": "short", "critique": "What is too long?", "revision": "Make it short."}],
    },
    "pair_classifier": {
        "kind": "pair_classifier", "model": "sft", "preferences": "preferences", "batch_size": 4, "lora": LORA,
        "learning_rate": 1e-3, "checkpoint_every": 2,
    },
    "rejection_sampling": {"kind": "rejection_sampling", "responses": "responses", "rewards": REWARDS},
    **{
        kind: {
            "kind": kind, "model": "sft", "preferences": "preferences", "batch_size": 4, "lora": LORA,
            "learning_rate": 1e-3, "checkpoint_every": 2, "cut_chosen": "keep",
        }
        for kind in ("kto", "simpo", "orpo")
    },
    "distil": {
        "kind": "distil", "teacher": "sft", "model": "base", "batch_size": 4, "lora": LORA, "learning_rate": 1e-3,
        "checkpoint_every": 2,
    },
    "quantise": {"kind": "quantise", "model": "sft", "scheme": "q8_0", "max_new_tokens": 6},
    "ppo": {"kind": "ppo", "critic_learning_rate": 1e-3, "epochs": 2, "minibatches": 2, "snapshot_every": 2,
            "rewards": [{"kind": "model", "model": "reward"}], **RL},
    "grpo": {"kind": "grpo", "per_prompt": 4, "beta": 0.05, "rewards": REWARDS, **RL},
    "rloo": {"kind": "rloo", "per_prompt": 4, "beta": 0.05, "rewards": REWARDS, **RL},
    "overoptimisation": {
        "kind": "overoptimisation", "policies": ["ppo"], "model": "sft", "reward": "reward", "raters": RATERS,
        "best_of": 4, "max_new_tokens": 8, "batch_size": 8,
    },
    "benchmark": {
        "kind": "benchmark", "models": ["base", "sft"], "batch_size": 4, "sampling": SHORT | {"temperature": 0.0},
        "tasks": {"things": {"questions": "questions.jsonl", "answer": "text"}},
        "forms": {"plain": {}, "voted": {"votes": 3}},
    },
    "tournament": {
        "kind": "tournament", "model": "sft", "policies": ["dpo", "grpo"], "raters": RATERS, "kl_prompts": 3,
        "sampling": GREEDY, "batch_size": 4,
    },
}  # fmt: skip
# Those of `tiny.yaml`, whose stage is named otherwise than its kind.
NAMES = {"sample": "responses", "evaluate": "evaluation"}
BEFORE = ("sft", "responses", "preferences", "reward", "dpo")


def write_recipe(make_recipe: Callable[..., Path], folder: Path) -> Path:
    """The recipe's file, with its data beside it."""
    path = make_recipe(folder)
    recipe = json.loads(path.read_text("utf-8"))
    last = recipe["stages"].pop("evaluation")
    outside = STAGES["outside_model"] | {"folder": recipe["model"]["base"]}
    recipe["stages"] = {**FIRST, **recipe["stages"], **STAGES, "outside_model": outside, "evaluation": last}
    recipe["name"] = "faults"
    recipe["data"] |= {"preferences": "pairs.jsonl", "corpus": "corpus.txt"}
    (folder / "corpus.txt").write_text("\n\n".join(f"The {n} cats saw {n + 1} red dogs." for n in range(60)), "utf-8")
    rows = [
        {"prompt": f"What is a {thing}?", "chosen": f"A {thing}.", "rejected": f"I do not know any {thing}."}
        for thing in ("cat", "dog", "fox", "owl", "hen", "pig", "cow", "bee")
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    questions = [{"prompt": row["prompt"], "reference": "yes"} for row in rows]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions), "utf-8")
    path.write_text(json.dumps(recipe, indent=1), "utf-8")
    return path
