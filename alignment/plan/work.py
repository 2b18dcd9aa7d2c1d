"""What a stage does, as the arithmetic sees it: passes that train, passes that only read, and sampling."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from alignment.plan.hardware import Machine
from alignment.plan.sizes import ModelSize

BYTES = {"bfloat16": 2, "float32": 4}
ENGINE_BATCH = 64  # rows that reinforcement learning samples together


@dataclass(frozen=True, slots=True)
class Pass:
    """Forward passes over ``tokens`` in ``batches`` batches, and with ``trains`` the backward passes after them.

    ``answers`` of the tokens are projected on the vocabulary; ``length`` is the mean context; ``batch_tokens`` and
    ``batch_answers`` are the most that one batch holds.
    """

    tokens: float
    answers: float
    batches: float
    length: float
    batch_tokens: float
    batch_answers: float
    trains: bool = False
    checkpointed: bool = False
    autocast: bool = True  # adapters' inputs are kept in bfloat16; else in the adapters' float32


@dataclass(frozen=True, slots=True)
class SamplingPass:
    """Sampling ``rows`` answers of ``new`` tokens each, ``batch`` at a time; a prompt is read once for its answers."""

    rows: float
    batch: int
    new: int
    prompt_tokens: float  # of all prompts
    longest: int  # prompt


@dataclass(slots=True)
class StageWork:
    """All of a stage. ``models`` are the parameters of each model that is held, in the recipe's number format;
    ``adapters`` those of adapters that are held without being trained, in float32; ``packed`` says how many of the
    models are the base in the fewer bits of ``scheme``. Where a stage is sharded,
    each worker holds one of ``parts`` of the first ``divided`` models, of adapters and of all that is trained.
    """

    name: str
    kind: str
    parameters: int = 0
    trainable: int = 0
    full: bool = False  # all weights are trained
    inside: bool = False  # some of the weights are, the others are frozen
    steps_each_batch: bool = False  # no gradient outlives its batch: none is accumulated, or added to other workers'
    wide: int = 0  # parameters that a bfloat16 recipe holds in float32 all the same, and computes with under autocast
    narrow_models: list[int] = field(default_factory=list)  # models that only a bfloat16 recipe holds, in float32
    masters: bool = False  # float32 copies of bfloat16 weights (alignment/policy/online/master_adamw.py)
    models: list[int] = field(default_factory=list)
    adapters: int = 0
    packed: int = 0
    scheme: str | None = None
    parts: int = 1
    divided: int = 1
    critics: int = 0  # trunks that are trained beside the policy's
    trained: float = 0.0  # tokens, as a run's report counts them
    sampled: float = 0.0
    activities: list[Pass | SamplingPass] = field(default_factory=list)
    at_most: bool = False  # counts are bounds: answers may end early, raters may disagree
    remarks: list[str] = field(default_factory=list)


def largest_batch(lengths: Sequence[float], size: int) -> float:
    """The most tokens a batch of ``size`` rows is likely to hold: mean and three deviations, or the longest rows'."""
    if not lengths:
        return 0.0
    mean = sum(lengths) / len(lengths)
    deviation = math.sqrt(sum((length - mean) ** 2 for length in lengths) / len(lengths))
    return min(sum(sorted(lengths, reverse=True)[:size]), size * mean + 3 * deviation * math.sqrt(size))


def flops(activity: Pass | SamplingPass, size: ModelSize, work: StageWork) -> float:
    """Floating-point operations, 2 for each multiplication and addition.

    A forward pass costs 2 per weight and token. Backward it is 2 for the input's gradient, through every weight, and 2
    for the weight's own, where it is trained (Kaplan et al. 2020, section 2.1): 6 in all, or 4 below an adapter.
    """
    if isinstance(activity, SamplingPass):
        context = activity.longest + activity.new / 2
        drawn = activity.rows * activity.new
        return _forward(size, work, activity.prompt_tokens, activity.rows, activity.longest) + _forward(
            size, work, drawn, drawn, context
        )
    forward = _forward(size, work, activity.tokens, activity.answers, activity.length)
    if not activity.trains:
        return forward
    adapter = 0 if work.full or work.inside else work.trainable
    attention = 4 * size.layers * size.query_width * activity.length
    body = (6 if work.full else 4) * size.matrix + 6 * adapter + 3 * attention
    # The head's loss and its slope are two products; a head that is trained itself has two more.
    trained = activity.tokens * body + activity.answers * size.head * (8 if work.full else 4)
    return trained + (forward if activity.checkpointed else 0)


def _forward(size: ModelSize, work: StageWork, tokens: float, answers: float, length: float) -> float:
    adapter = (0 if work.full or work.inside else work.trainable) + work.adapters
    body = 2 * (size.matrix + adapter) + 4 * size.layers * size.query_width * length
    return tokens * body + 2 * answers * size.head


def key_value_bytes(size: ModelSize, precision: str) -> int:
    """Bytes that one token takes in the cache of keys and values."""
    return 2 * size.layers * size.key_width * BYTES[precision]


def seconds(activity: Pass | SamplingPass, size: ModelSize, work: StageWork, machine: Machine, precision: str) -> float:
    """The time on a machine: operations at the share of its peak, or reading the weights, or launching, if longer."""
    rate = machine.share * machine.peak(precision)
    operations = flops(activity, size, work) / rate
    launch = size.layers * machine.step_seconds
    if isinstance(activity, Pass):
        return max(operations, activity.batches * launch * (3 if activity.trains else 1))
    steps = math.ceil(activity.rows / activity.batch) * activity.new
    cached = min(activity.rows, activity.batch) * (activity.longest + activity.new / 2)
    read = BYTES[precision] * (size.matrix + size.head) + key_value_bytes(size, precision) * cached
    return max(operations, steps * max(read / machine.bandwidth, launch))
