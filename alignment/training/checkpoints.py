"""Checkpoints of transformers trainers that survive SIGKILL: which of them are whole, and what they hold."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from alignment.durable_files import sync_tree, write_text
from alignment.models.adapter_kinds.soft_prompt import SOFT_STATE, SoftPromptModel, raw_state, restore_raw_state

COMPLETE = "complete"  # written into a checkpoint's folder after everything else: a SIGKILL leaves no half of one


def mark_complete(folder: Path, step: int) -> None:
    """Marks the checkpoint of a step as whole."""
    checkpoint = folder / f"checkpoint-{step}"
    sync_tree(checkpoint)  # a power cut must not leave the mark and lose what it marks
    write_text(checkpoint / COMPLETE, "")


def last_checkpoint(folder: Path, *, clean: bool = True) -> str | None:
    """The newest whole checkpoint, as a path for ``Trainer.train``; broken ones are removed where ``clean``."""
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).exists():
            whole[int(path.name.split("-")[1])] = path
        elif clean:
            shutil.rmtree(path)
    return str(whole[max(whole)]) if whole else None


def tokens_trained(checkpoint: Path) -> int:
    """The tokens that were trained on when a checkpoint was written."""
    return max((int(row.get("num_tokens", 0)) for row in _log_history(checkpoint)), default=0)


def restore_adapter(model: PeftModel, checkpoint: Path) -> None:
    """Loads the trained adapter of a checkpoint, which transformers 5.17 leaves out where another lies beside it.

    There a run of GRPO with a reference adapter went on from its beginning, with the optimizer of its end.
    """
    set_peft_model_state_dict(model, load_file(checkpoint / "adapter_model.safetensors"), adapter_name="default")
    if isinstance(model, SoftPromptModel):
        restore_raw_state(model, load_file(checkpoint / SOFT_STATE))


def keep_soft_prompt(model: Any, checkpoint: Path) -> None:
    """Adds to a checkpoint what PEFT leaves out of it: the network that makes virtual tokens, beside its output."""
    if isinstance(model, SoftPromptModel):
        save_file(raw_state(model), checkpoint / SOFT_STATE)


def _log_history(checkpoint: Path) -> Iterator[Mapping[str, Any]]:
    yield from json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))["log_history"]
