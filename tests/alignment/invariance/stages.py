"""What the invariance suite trains: a row for each trainer and each of its losses, at the size of a test.

A new trainer joins the suite by a row here (and by a line in ``MODULES`` of tests/alignment/conftest.py). The row says
what the stage's settings are where one worker passes over whole batches, in which settings the same step is split, and
what in its curves is its loss and its gradient norm.

The data is of unequal lengths, and batches do not divide it: a mean of means shows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LORA = {"rank": 4, "alpha": 8}
SUPERVISED = {
    "model": "base", "epochs": 2, "learning_rate": 5e-3, "warmup": 0.0, "max_length": 200, "checkpoint_every": 1,
    "lora": LORA,
}  # fmt: skip
REWARDS = [{"kind": "length_penalty", "unit": "characters", "free": 4, "full": 40}]
SAMPLED = {
    "model": "base", "learning_rate": 1e-3, "warmup": 0.0, "checkpoint_every": 1, "lora": LORA, "rewards": REWARDS,
    "episodes": 8, "sampling": {"max_new_tokens": 12},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A trainer with one of its losses.

    Attributes:
        settings: of its reference: one worker, batches in one piece.
        pieces: the settings under which the same steps are made in smaller batches.
        losses: the curves that are its loss.
        norm: the curve that is its gradient's norm.
        terms: of what size the terms are that the loss is a mean of, where they cancel; 0 where they do not.
        steps: that draw answers; 0 where none does.
        excused: by a transformation's name, why it says nothing here.
    """

    name: str
    kind: str
    settings: Mapping[str, Any]
    pieces: Mapping[str, Any]
    losses: tuple[str, ...] = ("loss",)
    norm: str = "grad_norm"
    terms: float = 0.0
    steps: int = 0
    excused: Mapping[str, str] = field(default_factory=dict)


def supervised(name: str, kind: str, size: int, **more: Any) -> Row:
    """A stage that trains on rows that it is given."""
    excused = more.pop("excused", {})
    settings = {"kind": kind, **SUPERVISED, "batch_size": size, **more}
    if kind != "sft":
        settings["preferences"] = "preferences"
    return Row(name, kind, settings, {"batch_size": size // 2, "gradient_accumulation": 2}, excused=excused)


def pretrained(name: str, **more: Any) -> Row:
    """A model that reads on; its rows are all of one length, and 4 do not divide them."""
    settings = {key: value for key, value in SUPERVISED.items() if key != "lora"}
    settings |= {"kind": "pretrain", "batch_size": 4, "max_length": 48, "held_out": 0.1, "schedule": "linear", **more}
    pieces = {"batch_size": 2, "gradient_accumulation": 2}
    excused = {"no trees": "its rows begin otherwise, and are no trees"}
    if more.get("optimizer") == "muon":
        excused["sharded"] = "muon turns whole matrices, which rlhf check refuses where workers hold parts"
    return Row(name, "pretrain", settings, pieces, excused=excused)


def grouped(name: str, kind: str, **more: Any) -> Row:
    """A stage that compares the answers to one prompt with each other."""
    excused = more.pop("excused", {})
    settings = {
        "kind": kind, **SAMPLED, "steps": 4, "epochs": 2, "per_prompt": 4, "batch_size": 8, "beta": 0.05, **more,
    }  # fmt: skip
    return Row(name, kind, settings, {"batch_size": 2}, terms=1.0, steps=4, excused=excused)


def ppo(name: str, **more: Any) -> Row:
    """PPO; two minibatches of four answers, in pieces of three."""
    losses = ("policy_loss", "value_loss", *(("kl_loss",) if more.get("kl_in") == "loss" else ()))
    settings = {
        "kind": "ppo", **SAMPLED, "steps": 3, "epochs": 2, "minibatches": 2, "batch_size": 8,
        "critic_learning_rate": 5e-3, **more,
    }  # fmt: skip
    return Row(name, "ppo", settings, {"batch_size": 3}, losses, "gradient_norm", terms=1.0, steps=3)


SORTED = {"pieces": "it sorts the pairs of a batch, so that a batch in pieces is another loss"}
ESTIMATED = dict.fromkeys(
    ("pieces", "pieces, two workers"), "its KL is of a batch, so that a batch in pieces is another loss"
)
REFRESHED = {"sharded": "each worker holds a part of policy and reference, which rlhf check refuses"}
DPO_LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
GRPO_LOSSES = ("grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo", "sapo", "luspo", "vespo")
SMOOTHED = ("exo_pair", "robust")  # they want a label's probability of being wrong
TRAINERS = (
    pretrained("pretrain"),
    supervised("sft", "sft", 4),  # 11 demonstrations: 4, 4 and 3
    supervised("reward", "reward", 8),  # 21 pairs: 8, 8 and 5
    supervised("pair_classifier", "pair_classifier", 16),  # 42 rows: 16, 16 and 10
    supervised("dpo", "dpo", 8),
    supervised("kto", "kto", 16, excused=ESTIMATED),  # 42 answers: 16, 16 and 10
    supervised("simpo", "simpo", 8),
    supervised("orpo", "orpo", 8),
    grouped("grpo", "grpo"),
    grouped("rloo", "rloo"),
    ppo("ppo"),
)
LOSSES = (
    pretrained("pretrain, isolated", isolated=True),
    pretrained("pretrain, muon", optimizer="muon"),
    supervised("reward, margins", "reward", 8, use_margin=True, center_rewards_coefficient=None),
    *(
        supervised(
            f"dpo, {loss}",
            "dpo",
            8,
            loss=loss,
            label_smoothing=0.1 if loss in SMOOTHED else 0.0,
            excused=SORTED if loss.startswith("aot") else {},
        )
        for loss in DPO_LOSSES[1:]
    ),
    supervised("kto, apo_zero_unpaired", "kto", 16, loss="apo_zero_unpaired", desirable_weight=1.3),
    supervised("dpo, mixture", "dpo", 8, loss=["sigmoid", "sft"], loss_weights=[1.0, 0.5]),
    supervised("dpo, refreshed", "dpo", 8, refresh_reference=2, excused=REFRESHED),
    *(grouped(f"grpo, {loss}", "grpo", loss=loss) for loss in GRPO_LOSSES if loss != "dapo"),
    grouped(
        "grpo, gspo with a token's mean",
        "grpo",
        loss="bnpo",
        importance_level="sequence",
        clip_low=3e-4,
        clip_high=4e-4,
    ),
    grouped("grpo, entropy bonus", "grpo", entropy_coefficient=0.05),
    grouped("grpo, batch scale", "grpo", scale_rewards="batch", delta=1.5),
    grouped("grpo, minibatches", "grpo", minibatches=2, batch_size=4, per_prompt=2),
    grouped("grpo, bnpo, minibatches", "grpo", loss="bnpo", minibatches=2, batch_size=4, per_prompt=2),
    grouped("grpo, truncated masked", "grpo", loss="bnpo", mask_truncated=True),
    grouped("grpo, highest entropies", "grpo", top_entropy=0.5),
    grouped("grpo, one update", "grpo", epochs=1, steps=4),
    grouped("grpo, reinforce++", "grpo", advantages="reinforce++"),
    grouped("grpo, masked importance", "grpo", importance_cap=2.0, importance="mask", importance_by="sequence"),
    grouped("rloo, normalised", "rloo", normalize_advantages=True),
    grouped("rloo, minibatches", "rloo", minibatches=2, batch_size=4, per_prompt=2),
    ppo("ppo, k2 in loss", kl_in="loss", kl_estimator="k2"),
    ppo("ppo, k3 in loss", kl_in="loss", kl_estimator="k3"),
    ppo("ppo, prompt baseline", baseline="prompt", per_prompt=4),
    ppo("ppo, whitened rewards", whiten_rewards=True, whiten_advantages=False, normalise_scores=False),
    ppo("ppo, clips", dual_clip=1.5, value_clip=None, clip_low=0.05, clip_high=0.05),
    ppo("ppo, importance weights", importance_cap=2.0),
    ppo("ppo, lambda", lam=0.95, gamma=0.99, critic="policy"),
)
