"""The work of making a model from nothing, and what a budget of operations is best spent on (Hoffmann et al. 2022)."""

import math
from dataclasses import dataclass
from typing import Any

from alignment.plan.hardware import Machine
from alignment.plan.work import Pass, StageWork
from alignment.recipe.stages.pretraining.pretrain import PretrainStage

CHINCHILLA = 20  # tokens a parameter (Hoffmann et al. 2022, table A3)
OPERATIONS = 6  # for each parameter and token that is trained (Kaplan et al. 2020, section 2.1)


@dataclass(frozen=True, slots=True)
class ComputeOptimal:
    """The size and the tokens for which a budget of operations on a machine is best spent."""

    machine: str
    precision: str
    hours: float
    flops: float
    parameters: int
    tokens: int


def compute_optimal(machine: Machine, precision: str, hours: float) -> ComputeOptimal:
    """What ``hours`` on a machine are best spent on: C = 6 N D operations, of which D = 20 N tokens.

    So N = √(C / 120) parameters. C is the share of the machine's peak that training reaches, over the hours.
    """
    budget = hours * 3600 * machine.share * machine.peak(precision)
    parameters = math.sqrt(budget / (OPERATIONS * CHINCHILLA))
    return ComputeOptimal(machine.name, precision, hours, budget, round(parameters), round(CHINCHILLA * parameters))


def tokenizer(planner: Any, work: StageWork, stage: Any) -> None:
    """Counting pairs of tokens: no model is loaded."""
    work.remarks.append("no model is loaded: pairs of tokens are counted, some megabytes of text a second")


def pretrain(planner: Any, work: StageWork, stage: PretrainStage) -> None:
    """Training passes over rows without padding, and a pass over the held-out ones."""
    size = planner.size
    planner.train_whole(work, stage)
    corpus, length = planner.texts.corpus, stage.max_length
    tokens = sum(corpus.lengths) * corpus.scale
    rows = math.floor(tokens * (1 - stage.held_out) / length)
    unseen = math.ceil(tokens * stage.held_out / length)
    for count, trains in ((rows * stage.epochs, True), (unseen, False)):
        batches = math.ceil(count / stage.batch_size)
        together = float(min(stage.batch_size, max(rows, 1)) * length)
        work.activities.append(
            Pass(
                tokens=count * length, answers=count * (length - 1), batches=batches, length=float(length) / 2,
                batch_tokens=together, batch_answers=together, trains=trains,
                checkpointed=stage.gradient_checkpointing and trains,
            )
        )  # fmt: skip
    work.trained = rows * length * stage.epochs
    used = size.parameters - size.skipped
    best = CHINCHILLA * used
    of = "" if used == size.parameters else f" that a token meets, of {size.parameters:,}"
    work.remarks.append(
        f"6 N D = {OPERATIONS * used * work.trained:.3g} operations for N = {used:,} parameters{of} and "
        f"D = {work.trained:,.0f} tokens, {work.trained / used:.2g} a parameter; compute-optimal are {CHINCHILLA} a "
        f"parameter, {best:,} tokens, or for these operations {_best_size(used * work.trained):,} parameters "
        "(Hoffmann et al. 2022)"
    )


def _best_size(product: float) -> int:
    """The parameters of the compute-optimal model that costs what N D = ``product`` does: √(N D / 20)."""
    return round(math.sqrt(product / CHINCHILLA))
