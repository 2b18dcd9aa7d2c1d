"""Peak memory of a stage on one device, in bytes, part by part."""

import math
from dataclasses import dataclass, fields

from alignment.plan.hardware import Machine
from alignment.plan.sizes import ModelSize
from alignment.plan.work import BYTES, Pass, SamplingPass, StageWork, key_value_bytes

CHUNK_ENTRIES, CHUNK_TOKENS = 2**23, 32  # alignment/training/token_logprobs.py, which a light module does not import


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the moment of the peak: what is held throughout, and the activity that takes the most beside it."""

    program: int = 0
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    kv_cache: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))


def peak_memory(work: StageWork, size: ModelSize, machine: Machine, precision: str) -> Memory:
    """The peak of a stage; nothing but the program where no model is loaded."""
    entry, parts = BYTES[precision], work.parts
    divided = entry * sum(work.models[: work.divided]) + 4 * work.adapters
    if not work.full and not work.inside:
        divided += 4 * work.trainable
    if entry == 2:
        divided += (4 - entry) * work.wide + 4 * sum(work.narrow_models)
    weights = _part(divided, parts) + entry * sum(work.models[work.divided :]) + _gathered(work, size, entry)
    if work.scheme is not None:
        weights -= work.packed * size.saved(work.scheme, entry)
    if _is_wide(work, entry):  # each product's weights are narrowed in the forward pass and kept for the backward pass
        weights += entry * (size.matrix + size.head)
    moments = [_moment(activity, work, size, machine, precision) for activity in work.activities]
    activations, logits, cache = max(moments, key=sum, default=(0, 0, 0))
    gradients = _part(work.trainable * _gradient_bytes(work, entry), parts)
    if work.full and work.steps_each_batch:
        # A batch's gradients come while its activations go, and have gone before the next one's activations come.
        if gradients > activations + logits + cache:
            activations = logits = cache = 0
        else:
            gradients = 0
    return Memory(
        program=machine.program,
        weights=weights,
        gradients=gradients,
        optimizer=_part(work.trainable * _optimizer_bytes(work, entry), parts),
        activations=activations,
        logits=logits,
        kv_cache=cache,
    )


def _part(held: int, parts: int) -> int:
    """One worker's bytes of what ``parts`` of them share."""
    return math.ceil(held / parts)


def _gathered(work: StageWork, size: ModelSize, entry: int) -> int:
    """What a worker holds of the others' parts of the weights (alignment/distributed/fsdp.py).

    Where it samples, a whole model. Else the embedding and a head of its own, from a step's beginning to its end, and
    two layers: the one at work and the next, whose weights are on their way; a critic has an embedding as well. Once
    more for the gradients of all that is trained whole, until they are added up: in float32 where they have masters.
    """
    if work.parts == 1:
        return 0
    others = 1 - 1 / work.parts
    outside = size.head * (1 if size.tied else 2)
    layers = 2 * (size.parameters - outside) / size.layers
    gradients = _gradient_bytes(work, entry) if work.full else 0
    held = 4 if _is_wide(work, entry) else entry
    trained = (held + gradients) * (outside + work.critics * size.head + layers)
    samples = any(isinstance(activity, SamplingPass) for activity in work.activities)
    return round(max(trained, held * size.parameters if samples else 0) * others)


def _is_wide(work: StageWork, entry: int) -> bool:
    """Whether all weights are trained in float32 under bfloat16 autocast (alignment/training/policy.py)."""
    return (work.full or work.inside) and work.wide > 0 and entry == 2


def _gradient_bytes(work: StageWork, entry: int) -> int:
    """A parameter's gradient has its own format; a master's is beside the bfloat16 one that it is added from."""
    if not (work.full or work.inside) or _is_wide(work, entry):
        return 4
    return 4 + 2 if work.masters and entry == 2 else entry


def _optimizer_bytes(work: StageWork, entry: int) -> int:
    """AdamW's two moments in the parameter's format, and a float32 master where there is one."""
    if (work.full or work.inside) and entry == 2 and not work.wide:
        return 4 + 8 if work.masters else 2 * entry
    return 8


def _moment(
    activity: Pass | SamplingPass, work: StageWork, size: ModelSize, machine: Machine, precision: str
) -> tuple[int, int, int]:
    """(activations, logits, cache) in bytes while an activity's largest batch is in work."""
    entry = BYTES[precision]
    if isinstance(activity, SamplingPass):
        rows = math.ceil(min(activity.rows, activity.batch))
        cache = rows * (activity.longest + activity.new) * key_value_bytes(size, precision)
        # A layer's cache is copied when rows leave; of the logits there are the model's, the processed, and their sums.
        reading = rows * activity.longest * entry * (size.hidden + 3 * size.inner)
        return reading, rows * size.vocabulary * (entry + 4 * 4), cache + cache // size.layers
    chunk = min(max(CHUNK_TOKENS, CHUNK_ENTRIES // size.vocabulary), math.ceil(activity.batch_answers))
    logits = chunk * size.vocabulary * (4 + 4 + 2 * entry)
    if activity.trains and work.full and activity.batch_answers:
        logits += 4 * size.head  # the head's gradient, summed in float32
    per_layer = layer_activations(size, work, machine, precision, autocast=activity.autocast)
    if not activity.trains:
        return round(activity.batch_tokens * per_layer), logits, 0
    kept = entry * size.hidden if activity.checkpointed else per_layer
    return round(activity.batch_tokens * (size.layers * kept + per_layer)), logits, 0  # all layers', and one at work


def layer_activations(
    size: ModelSize, work: StageWork, machine: Machine, precision: str, *, autocast: bool = True
) -> float:
    """Bytes that one layer keeps of one token for its backward pass.

    Two norms keep their input in float32 (and in the model's format, where their weight is trained). Attention keeps
    queries, keys, values and its output: in float32 on a processor (alignment/models/cpu_attention.py). The
    feed-forward part keeps what its product was made of. Below an adapter, and under autocast, each linear layer keeps
    a copy of its input, cast for it; where all is one format, layers with one input share it.
    """
    entry = BYTES[precision]
    wide = _is_wide(work, entry)
    norms = 2 * 4 * size.hidden + (2 * (4 if wide else entry) * size.hidden if work.full else 0)
    attention = (entry if machine.gpu else 4) * 2 * (size.query_width + size.key_width)
    nonlinear = entry * size.inner * (3 if size.gated else 1)
    if (work.full and not wide) or entry == 4:
        inputs: float = entry * (2 * size.hidden + size.query_width + size.inner)
    else:
        inputs = (2 if autocast else 4) * size.inputs / size.layers
    return norms + attention + nonlinear + inputs
