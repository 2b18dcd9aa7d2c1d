"""Training with a transformers or TRL trainer, from the last whole checkpoint or the start."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback

from alignment.distributed.fsdp import prepare_trainer, sharding
from alignment.distributed.workers import share_batches, wait_for_workers
from alignment.models.cpu_attention import quick_backward
from alignment.models.device import pick_device
from alignment.models.prefix_sharing import share_prefixes
from alignment.stage import StageContext
from alignment.training.callback import StageCallback
from alignment.training.checkpoints import last_checkpoint, tokens_trained
from alignment.training.curves import Curves, curves_of_log

disable_progress_bars()  # a stage says where it stands by itself


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trainer after its training. ``mean_loss`` is the mean over all steps, those before a restart included."""

    trainer: Any
    curves: Curves
    tokens: int

    @property
    def model(self) -> Any:
        """The trained model, as the trainer wrapped it."""
        return self.trainer.model

    @property
    def mean_loss(self) -> float:
        losses = [value for _step, value in self.curves["loss"]]
        return sum(losses) / len(losses)  # the trainer's own mean leaves out what came before a restart


def fit(
    model: Any,
    make_trainer: Callable[[StageCallback], Any],
    context: StageContext,
    *,
    callback: StageCallback | None = None,
    more_callbacks: Sequence[TrainerCallback] = (),
    batch_size: int | None = None,
) -> Fitted:
    """Trains ``model``, which ``make_trainer`` gives to its trainer.

    Args:
        callback: a stage's own callback in place of :class:`StageCallback`.
        more_callbacks: further ones, which the trainer calls after it.
        batch_size: of the batches that several workers share, where these may be uneven.
    """
    trunk = model.get_base_model() if isinstance(model, PeftModel) else model
    share_prefixes(trunk)
    callback = callback or StageCallback(context)
    # A model that is to be sharded waits in main memory, wherever it will train.
    on_processor = (trunk,) if pick_device(context.run.resources).type == "cpu" else ()
    with context.working(), quick_backward(*on_processor), sharding(context):
        trainer = make_trainer(callback)  # DPO computes its reference's log-probabilities here
    prepare_trainer(trainer, context)
    trainer.remove_callback(PrinterCallback)  # it prints every step; the callback above reports it instead
    for extra in more_callbacks:
        trainer.add_callback(extra)
    for name, parameter in model.named_parameters():
        if ".ref." in name:  # TRL's copy of the adapter, which is the reference
            parameter.requires_grad_(False)
    if context.workers > 1 and batch_size is not None:
        share_batches(trainer, batch_size, context)
    resume = callback.resumed = last_checkpoint(context.checkpoints, clean=context.rank == 0)
    wait_for_workers(context)  # nobody writes a checkpoint while broken ones are still being removed
    if resume:
        callback.tokens = callback.tokens_before = tokens_trained(Path(resume))
    with context.working(), quick_backward(*on_processor), sharding(context):
        trainer.train(resume_from_checkpoint=resume)
    # The curves' beginning is in the checkpoint.
    curves = curves_of_log(trainer.state.log_history) if resume else callback.curves
    callback.curves = curves
    return Fitted(trainer, curves, callback.tokens)
