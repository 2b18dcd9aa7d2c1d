"""What every TRL trainer here shares: its arguments, its progress, and checkpoints that survive SIGKILL."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from datasets import disable_progress_bars
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignment.distributed.fsdp import prepare_trainer, sharding, sharding_arguments
from alignment.distributed.workers import share_batches, wait_for_workers
from alignment.models.cpu_attention import quick_backward
from alignment.models.device import pick_device
from alignment.models.prefix_sharing import share_prefixes
from alignment.recipe.resources import Resources
from alignment.recipe.run_settings import RunSettings
from alignment.recipe.stages.training import Training
from alignment.stage import Progress, StageContext

disable_progress_bars()  # a stage says where it stands by itself
COMPLETE = "complete"  # written into a checkpoint's folder after everything else: a SIGKILL leaves no half of one
UNINTERESTING = {"epoch", "num_tokens", "total_flos", "train_runtime", "train_samples_per_second"}
Curves = dict[str, list[tuple[int, float]]]


class OptimizerSettings(Protocol):
    """What a stage's settings say of its steps, however it comes by its batches."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def warmup(self) -> float: ...
    @property
    def schedule(self) -> str: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def max_grad_norm(self) -> float: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def gradient_checkpointing(self) -> bool: ...


def trainer_arguments(settings: Training, context: StageContext) -> dict[str, Any]:
    """The keyword arguments that any ``TrainingArguments`` takes from a stage's settings.

    AdamW with its usual β; the epsilon is PyTorch's. Weights in bfloat16 are trained under bfloat16 autocast, and
    adapters stay in float32, which is what lets small learning rates register.
    """
    return shared_arguments(settings, context) | {
        "num_train_epochs": settings.epochs,
        "per_device_eval_batch_size": settings.batch_size // context.workers,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "max_length": settings.max_length,
    }


def shared_arguments(settings: OptimizerSettings, context: StageContext) -> dict[str, Any]:
    """Those that do not depend on how a stage comes by its batches."""
    device = pick_device(context.run.resources)
    return {
        "output_dir": str(context.checkpoints),
        "learning_rate": settings.learning_rate,
        "per_device_train_batch_size": settings.batch_size // context.workers,
        "warmup_steps": settings.warmup,  # below 1 it is a share of the steps
        "lr_scheduler_type": settings.schedule,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "bf16": context.run.model.dtype == "bfloat16",
        "use_cpu": device.type == "cpu",
        "seed": context.run.seed,
        "data_seed": context.run.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a loss that is not a number must show
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_every,
        "save_total_limit": 2,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": device.type == "cuda",
        "ddp_find_unused_parameters": False,  # every trained weight is used in every pass
        "ddp_broadcast_buffers": False,  # those of rotary positions never change
    } | sharding_arguments(context)


class StageCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Reports progress, keeps the curves, marks whole checkpoints, and stops a run whose loss is not finite."""

    def __init__(self, context: StageContext) -> None:
        self.context = context
        self.curves: Curves = {}
        self.tokens = self.tokens_before = 0  # before: those of the steps that a checkpoint holds
        self.resumed: str | None = None  # the checkpoint that training goes on from
        self.updates = 1  # optimizer steps between which alone a checkpoint holds all that is needed
        self._warned = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Called by the trainer once it has loaded its checkpoint."""
        if self.resumed is not None and isinstance(model, PeftModel) and not self.context.sharded:
            restore_adapter(model, Path(self.resumed))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Called by the trainer after each optimizer step with that step's metrics."""
        numbers = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, int | float)}
        if not math.isfinite(numbers.get("loss", 0.0)):
            raise FloatingPointError(
                f"{self.context.name}: the loss at step {state.global_step} is {numbers['loss']}; "
                f"lower the learning rate ({args.learning_rate:g}) or look at the data of that step"
            )
        if "num_tokens" in numbers:  # TRL counts from 0 again after a restart; the checkpoint is to hold the whole
            self.tokens = self.tokens_before + int(numbers["num_tokens"])
            state.log_history[-1]["num_tokens"] = self.tokens
        metrics = {k: v for k, v in numbers.items() if k not in UNINTERESTING and not k.startswith("train_")}
        for name, value in metrics.items():
            self.curves.setdefault(name, []).append((state.global_step, value))
        if metrics:
            self.context.report(Progress(state.global_step, state.max_steps, metrics, self.tokens))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the trainer after each optimizer step: saves at once where this worker is about to end."""
        if not self._warned and state.global_step % self.updates == 0 and self.context.preempted():
            self._warned = control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the trainer once a checkpoint is written; every worker has put its random state in it."""
        wait_for_workers(self.context)
        if self.context.rank == 0:
            (Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
        self.context.saved()


def restore_adapter(model: PeftModel, checkpoint: Path) -> None:
    """Loads the trained adapter of a checkpoint, which transformers 5.17 leaves out where another lies beside it.

    There a run of GRPO with a reference adapter went on from its beginning, with the optimizer of its end.
    """
    set_peft_model_state_dict(model, load_file(checkpoint / "adapter_model.safetensors"), adapter_name="default")


def last_checkpoint(folder: Path, *, clean: bool = True) -> str | None:
    """The newest whole checkpoint, as a path for ``Trainer.train``; broken ones are removed where ``clean``."""
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).exists():
            whole[int(path.name.split("-")[1])] = path
        elif clean:
            shutil.rmtree(path)
    return str(whole[max(whole)]) if whole else None


def fit(
    model: Any,
    make_trainer: Callable[[StageCallback], Any],
    context: StageContext,
    *,
    callback: StageCallback | None = None,
    also: Sequence[TrainerCallback] = (),
    batch_size: int | None = None,
) -> tuple[Any, StageCallback, float]:
    """Trains from the last whole checkpoint (or the start). Returns the trainer, its callback and the mean loss.

    ``model`` is what ``make_trainer`` gives to its trainer; ``callback`` is a stage's own, where it has one;
    ``also`` are further ones. ``batch_size``: of the batches that several workers share, where these may be uneven.
    """
    trunk = model.get_base_model() if isinstance(model, PeftModel) else model
    share_prefixes(trunk)
    callback = callback or StageCallback(context)
    # A model that is to be sharded waits in main memory, wherever it will train.
    slow = (trunk,) if pick_device(context.run.resources).type == "cpu" else ()
    with context.working(), quick_backward(*slow), sharding(context):
        trainer = make_trainer(callback)  # DPO computes its reference's log-probabilities here
    prepare_trainer(trainer, context)
    trainer.remove_callback(PrinterCallback)  # it prints every step; the callback above reports it instead
    for one in also:
        trainer.add_callback(one)
    for name, parameter in model.named_parameters():
        if ".ref." in name:  # TRL's copy of the adapter, which is the reference
            parameter.requires_grad_(False)
    if context.workers > 1 and batch_size is not None:
        share_batches(trainer, batch_size, context)
    resume = callback.resumed = last_checkpoint(context.checkpoints, clean=context.rank == 0)
    wait_for_workers(context)  # nobody writes a checkpoint while broken ones are still being removed
    if resume:
        callback.tokens = callback.tokens_before = _tokens_of(Path(resume))
    with context.working(), quick_backward(*slow), sharding(context):
        trainer.train(resume_from_checkpoint=resume)
    if resume:  # the curve's beginning is in the checkpoint
        callback.curves = _curves_of(trainer.state.log_history)
    losses = [value for _step, value in callback.curves["loss"]]
    return trainer, callback, sum(losses) / len(losses)  # the trainer's own mean leaves out what came before a restart


def seed_everything(run: RunSettings) -> None:
    """The first thing that a stage does: also a fresh adapter's weights are drawn, long before training starts."""
    transformers.set_seed(run.seed)
    choose_kernels(run.resources)


def choose_kernels(resources: Resources) -> None:
    """On a GPU, kernels that sum in one order, or where the recipe wants them the faster others.

    With the first a run repeats as it does on a processor. Attention's gradient is left as it is: torch makes it so
    only where it refuses every operation that it cannot make so, which sampling needs.
    """
    if pick_device(resources).type == "cuda":
        torch.use_deterministic_algorithms(resources.deterministic, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time


def _tokens_of(checkpoint: Path) -> int:
    """The tokens that were trained on when a checkpoint was written."""
    history = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))["log_history"]
    return max((int(row.get("num_tokens", 0)) for row in history), default=0)


def _curves_of(history: list[dict[str, float]]) -> Curves:
    curves: Curves = {}
    for row in history:
        for name, value in row.items():
            if name not in UNINTERESTING and name != "step" and not name.startswith("train_"):
                curves.setdefault(name, []).append((int(row["step"]), float(value)))
    return curves


def final_metrics(callback: StageCallback) -> dict[str, float]:
    """The mean of each curve's last tenth (at least one step): a step's own value is too noisy to quote."""
    metrics = {}
    for name, curve in callback.curves.items():
        tail = [value for _step, value in curve[-max(1, len(curve) // 10) :]]
        metrics[name] = sum(tail) / len(tail)
    return metrics
