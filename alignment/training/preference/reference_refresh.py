"""A reference that follows the policy: every n steps it becomes what the policy is (Gorbatovski et al. 2024, hard).

TRL does it for whole weights alone, and a run that goes on from a checkpoint begins with the reference of its start.
Here the reference is an adapter as well, and stands in each checkpoint once it has moved.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignment.models.adapters import adapter_weights
from alignment.stage import StageContext

REFERENCE_FILE = "reference.safetensors"
POLICY_ADAPTER, REFERENCE_ADAPTER = "default", "ref"


class ReferenceRefresh(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Copies the policy into its reference after every ``every`` optimizer steps.

    ``reference`` is the frozen model of a policy of whole weights; None where the reference is TRL's adapter "ref".
    """

    def __init__(self, context: StageContext, every: int, reference: Any = None) -> None:
        self.context, self.every, self.reference = context, every, reference

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Called by the trainer once it has loaded its checkpoint: the reference is the checkpoint's."""
        kept = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / REFERENCE_FILE
        if state.global_step and kept.exists():
            _fill(self._held(model), load_file(kept))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Called by the trainer after each optimizer step."""
        if state.global_step % self.every == 0:
            _fill(self._held(model), _policy_weights(model))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Called by the trainer once a checkpoint is written, before it is marked as whole."""
        if self.context.rank == 0 and state.global_step >= self.every:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            held = self._held(model)
            save_file({name: weight.detach().contiguous() for name, weight in held.items()}, folder / REFERENCE_FILE)

    def _held(self, model: Any) -> dict[str, torch.Tensor]:
        """The reference's weights by the names that the policy's have."""
        if self.reference is not None:
            return _plain(dict(self.reference.named_parameters()))
        return _plain(adapter_weights(model, REFERENCE_ADAPTER))


def _policy_weights(model: Any) -> dict[str, torch.Tensor]:
    inner = model.module if hasattr(model, "module") else model
    if isinstance(inner, PeftModel):
        return _plain(adapter_weights(inner, POLICY_ADAPTER))
    return _plain(dict(model.named_parameters()))


def _plain(named: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Weights by their names without those of a wrapper for several workers."""
    return {name.removeprefix("module."): weight for name, weight in named.items()}


@torch.no_grad()
def _fill(held: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    for name, weight in held.items():
        weight.copy_(values[name])
