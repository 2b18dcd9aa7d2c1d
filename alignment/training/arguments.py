"""The arguments that transformers and TRL trainers take from a stage's settings."""

from typing import Any, Protocol

from alignment.distributed.fsdp import sharding_arguments
from alignment.models.device import pick_device
from alignment.recipe.stages.training import Training
from alignment.stage import StageContext


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

    AdamW with its usual β; the epsilon is PyTorch's. Where the recipe computes in bfloat16, training runs under
    bfloat16 autocast on weights in float32 (:func:`alignment.models.load.load_policy`), so that small updates register.
    The learning rate follows :mod:`alignment.training.schedule`.
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
