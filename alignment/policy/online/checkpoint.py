"""Checkpoints that hold everything: two steps give the same bits as one, a restart, and one more.

A checkpoint is a folder, renamed into place once it is whole: ``weights.safetensors`` (all that is trained: policy or
adapter, critic, value head), ``optimizer.pt`` (moments, master weights, schedule), ``random.pt`` (random states) and
``state.json`` (step, data position, KL coefficient, the scores' running statistics, history). What is drawn depends on
the seed and the step alone, so no other state exists. Its tensors are whole, however many workers hold a part of them
each.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from alignment.distributed.dtensor import part_like, whole
from alignment.durable_files import rename_synced
from alignment.policy.online.actor_critic import Actor
from alignment.policy.online.kl_controller import KlController
from alignment.policy.online.master_adamw import MasterAdamW
from alignment.policy.online.score_scale import ScoreScale

KEPT = 2  # newest checkpoints


@dataclass(slots=True)
class TrainingState:
    """Where a run stands, between two steps."""

    step: int = 0  # steps done
    position: int = 0  # prompts taken from the stream
    pass_rates: dict[str, float] = field(default_factory=dict)  # by prompt, where a curriculum asks for them
    tokens_sampled: int = 0
    tokens_trained: int = 0
    score_scale: ScoreScale = field(default_factory=ScoreScale)  # of all scores so far
    history: list[dict[str, float]] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    held_out: list[list[float]] = field(default_factory=list)  # outcomes of each look at the held-out prompts
    ahead: list[list[list[dict[str, Any]]]] | None = None  # the next steps' answers, where they are drawn already


def save_checkpoint(
    folder: Path,
    state: TrainingState,
    actor: Actor,
    optimizer: MasterAdamW,
    controller: KlController,
    *,
    writes: bool = True,
) -> None:
    """Writes ``folder/step-<N>`` whole or not at all, and removes all but the newest ``KEPT``.

    Every worker has to come here; the one that ``writes`` gets what the others hold.
    """
    tensors = whole({name: parameter.detach() for name, parameter in actor.trainable().items()}, kept=writes)
    moments = whole(optimizer.state_dict(), kept=writes)
    if not writes:
        return
    target = folder / f"step-{state.step:06d}"
    partial = folder / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / "weights.safetensors")
    torch.save(moments, partial / "optimizer.pt")
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    torch.save(random, partial / "random.pt")
    record = {"state": asdict(state), "controller": asdict(controller)}
    (partial / "state.json").write_text(json.dumps(record), "utf-8")
    shutil.rmtree(target, ignore_errors=True)
    rename_synced(partial, target)
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)


def load_checkpoint(folder: Path, actor: Actor, optimizer: MasterAdamW) -> tuple[TrainingState, KlController] | None:
    """Restores the newest checkpoint into ``actor`` and ``optimizer``; None where there is none."""
    found = sorted(folder.glob("step-*"))
    if not found:
        return None
    newest = found[-1]
    tensors = load_file(newest / "weights.safetensors")
    parameters = actor.trainable()
    if tensors.keys() != parameters.keys():
        raise ValueError(f"{newest} holds other weights than this run trains; remove it to start over")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(part_like(tensors[name], parameter))
    optimizer.load_state_dict(torch.load(newest / "optimizer.pt", weights_only=True))
    random = torch.load(newest / "random.pt", weights_only=True)
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    record: dict[str, Any] = json.loads((newest / "state.json").read_text("utf-8"))
    scale = ScoreScale(**record["state"].pop("score_scale"))
    return TrainingState(**record["state"], score_scale=scale), KlController(**record["controller"])
