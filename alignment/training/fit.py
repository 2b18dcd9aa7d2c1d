"""Training with a transformers or TRL trainer, from the last whole checkpoint or the start."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from transformers import PrinterCallback, TrainerCallback

from alignment.distributed.accumulation import Units, weigh_batches
from alignment.distributed.fsdp import prepare_trainer, sharding
from alignment.distributed.workers import share_batches, wait_for_workers
from alignment.models.adapters import adapter_weights, base_of
from alignment.models.cpu_attention import quick_backward
from alignment.models.device import pick_device
from alignment.models.prefix_sharing import share_prefixes
from alignment.stage import StageContext
from alignment.training.arguments import OptimizerSettings
from alignment.training.callback import StageCallback
from alignment.training.checkpoints import last_checkpoint, tokens_trained
from alignment.training.curves import Curves, curves_of_log
from alignment.training.dropout import check_no_dropout, switch_off_dropout
from alignment.training.schedule import use_schedule

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
    settings: OptimizerSettings,
    context: StageContext,
    *,
    callback: StageCallback | None = None,
    more_callbacks: Sequence[TrainerCallback] = (),
    batch_size: int | None = None,
    units: Units | None = None,
    token_units: Units | None = None,
    split: bool = True,
    reference: bool = False,
) -> Fitted:
    """Trains ``model``, which ``make_trainer`` gives to its trainer.

    Args:
        callback: a stage's own callback in place of :class:`StageCallback`.
        more_callbacks: further ones, which the trainer calls after it.
        batch_size: of the batches that several workers share, where these may be uneven.
        units: what the loss of a batch is a mean over, so that batches of unequal size make a step of equal units.
        token_units: what terms of it are a mean over, where these are not ``units``.
        split: False where the loss of a batch is not that of its parts: each worker then does the whole of it.
        reference: the trainer compares the model with what it started from: dropout is off in both, and checked.

    Raises:
        StageError: with ``reference``, the model draws at random in training mode.
    """
    share_prefixes(base_of(model))
    callback = callback or StageCallback(context)
    with _training(context, model):
        trainer = make_trainer(callback)  # DPO may compute its reference's log-probabilities here
    models = [model]
    if (frozen := getattr(trainer, "ref_model", None)) is not None:
        share_prefixes(frozen)  # it is to compute exactly as the model does
        models.append(frozen)
    if reference:
        for compared in models:  # TRL's copy of an adapter has dropout of its own
            switch_off_dropout(compared)
        if not context.sharded:
            check_no_dropout(model)
    use_schedule(trainer, warmup=settings.warmup, schedule=settings.schedule)
    prepare_trainer(trainer, context)
    trainer.remove_callback(PrinterCallback)  # it prints every step; the callback above reports it instead
    for extra in more_callbacks:
        trainer.add_callback(extra)
    for parameter in adapter_weights(model, "ref").values():  # TRL's copy of the adapter, which is the reference
        parameter.requires_grad_(False)
    if context.workers > 1 and batch_size is not None:
        share_batches(trainer, batch_size, context, split=split)
    if units is not None:
        weigh_batches(trainer, units, context, shared=split, token_units=token_units)
    resume = callback.resumed = last_checkpoint(context.checkpoints, clean=context.rank == 0)
    wait_for_workers(context)  # nobody writes a checkpoint while broken ones are still being removed
    if resume:
        callback.tokens = callback.tokens_before = tokens_trained(Path(resume))
    with _training(context, *models):
        trainer.train(resume_from_checkpoint=resume)
    # The curves' beginning is in the checkpoint.
    curves = curves_of_log(trainer.state.log_history) if resume else callback.curves
    callback.curves = curves
    return Fitted(trainer, curves, callback.tokens)


@contextmanager
def _training(context: StageContext, *models: Any) -> Iterator[None]:
    """The stage's clock runs, models attend as is quick where they are, and are sharded where the recipe says so."""
    # A model that is to be sharded waits in main memory, wherever it will train.
    on_processor = pick_device(context.run.resources).type == "cpu"
    trunks = [base_of(model) for model in models] if on_processor else []
    autocast = context.run.model.dtype == "bfloat16"
    with context.working(), quick_backward(*trunks, autocast=autocast), sharding(context):
        yield
