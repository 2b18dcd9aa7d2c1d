"""The callback of every stage that a transformers trainer trains: progress, curves, checkpoints, a loss gone wrong."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignment.distributed.workers import wait_for_workers
from alignment.stage import Progress, StageContext
from alignment.training.checkpoints import keep_soft_prompt, mark_complete, restore_adapter
from alignment.training.curves import Curves, is_curve

FirstStep = Callable[[Mapping[str, float]], None]
"""Looks at the metrics of the first optimizer step, which were measured before it, and raises where they are wrong."""


class StageCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Reports progress, keeps the curves, marks whole checkpoints, and stops a run whose loss is not finite."""

    def __init__(self, context: StageContext, first_step: FirstStep | None = None) -> None:
        self.context, self.first_step = context, first_step
        self.curves: Curves = {}
        self.tokens = self.tokens_before = 0  # before: those of the steps that a checkpoint holds
        self.resumed: str | None = None  # the checkpoint that training goes on from
        self._warned = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Called by the trainer once it has loaded its checkpoint."""
        inner = getattr(model, "module", model)  # of several workers
        if self.resumed is not None and isinstance(inner, PeftModel) and not self.context.sharded:
            restore_adapter(inner, Path(self.resumed))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Called by the trainer after each optimizer step with that step's metrics."""
        figures = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, int | float)}
        if not math.isfinite(figures.get("loss", 0.0)):
            raise FloatingPointError(
                f"{self.context.name}: the loss at step {state.global_step} is {figures['loss']}; "
                f"lower the learning rate ({args.learning_rate:g}) or look at the data of that step"
            )
        if "num_tokens" in figures:  # TRL counts from 0 again after a restart; the checkpoint is to hold the whole
            self.tokens = self.tokens_before + int(figures["num_tokens"])
            state.log_history[-1]["num_tokens"] = self.tokens
        metrics = {name: value for name, value in figures.items() if is_curve(name)}
        if self.first_step is not None and state.global_step == 1:
            self.first_step(metrics)
        for name, value in metrics.items():
            self.curves.setdefault(name, []).append((state.global_step, value))
        if metrics:
            self.context.report(Progress(state.global_step, state.max_steps, metrics, self.tokens))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the trainer after each optimizer step: saves at once where this worker is about to end."""
        if not self._warned and self.context.preempted():
            self._warned = control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Called by the trainer once a checkpoint is written; every worker has put its random state in it."""
        wait_for_workers(self.context)
        if self.context.rank == 0:
            folder = Path(str(args.output_dir))
            keep_soft_prompt(getattr(model, "module", model), folder / f"checkpoint-{state.global_step}")
            mark_complete(folder, state.global_step)
        self.context.saved()
