"""Snapshots: the policy as it was at some steps of its training, kept for who asks how it got where it is.

They stand in ``snapshots/step-000010`` below the stage's output, each a model artifact's folder of its own. While the
stage trains they lie among its checkpoints, where a restart finds them.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignment.distributed.fsdp import whole_state
from alignment.durable_files import folder_digest, rename_synced
from alignment.models.load import save_policy
from alignment.records import Artifact
from alignment.stage import StageContext

FOLDER = "snapshots"


class Snapshots(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Keeps the policy every ``every`` steps; None: never."""

    def __init__(self, every: int | None, tokenizer: Any, base: Artifact, context: StageContext) -> None:
        self.every, self.tokenizer, self.base = every, tokenizer, base
        self._writes, self._dtype = context.rank == 0, getattr(torch, context.run.model.dtype)
        self._kept, self._target = context.checkpoints / FOLDER, context.output / FOLDER

    def take(self, policy: Any, step: int) -> None:
        """Keeps the policy where ``step`` is due. Half a snapshot never has a snapshot's name."""
        if self.every is None or step % self.every:
            return
        state = whole_state(policy, trained_only=isinstance(policy, PeftModel))
        if not self._writes:
            return
        folder = self._kept / f"step-{step:06d}"
        partial = folder.with_name("partial")
        for old in (folder, partial):  # of a step that is done again after a restart, or that was being written
            shutil.rmtree(old, ignore_errors=True)
        partial.mkdir(parents=True)
        save_policy(policy, self.tokenizer, self.base, partial, state=state, dtype=self._dtype)
        rename_synced(partial, folder)

    def publish(self) -> None:
        """Moves what was kept into the stage's output."""
        if self.every is not None and self._kept.exists():
            shutil.copytree(self._kept, self._target, ignore=shutil.ignore_patterns("partial"))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Called by a TRL trainer after each optimizer step."""
        self.take(getattr(model, "module", model), state.global_step)


def snapshots_of(artifact: Artifact) -> Iterator[tuple[int, Artifact]]:
    """A policy's snapshots as (step, model artifact), in the order of their steps; none where none were kept."""
    for folder in sorted(Path(artifact.path).glob(f"{FOLDER}/step-*")):
        step = int(folder.name.removeprefix("step-"))
        name = f"{artifact.name}.{folder.name}"
        digest = folder_digest(folder)
        yield step, Artifact(name=name, kind="model", version=1, digest=digest, path=str(folder), key=name)
