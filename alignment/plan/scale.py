"""How training and sampling grow with the number of devices: a model of communication, and of who waits for whom.

Messages cost α seconds each and β seconds a byte (Hockney 1994). A ring all-reduce of n bytes over N devices is
2(N − 1) messages of n / N bytes (Patarasuk and Yuan 2009); over nodes it is done inside each node first, across nodes
on the part that each device then holds, and inside again (as NCCL does). Gradients travel beside the backward pass;
what does not fit beside it is waited for. In synchronous reinforcement learning each device draws its share of the
answers, and all wait for the longest answer of all.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Sharding = Literal["ddp", "fsdp"]
BACKWARD = 2 / 3  # of a training step without adapters: forward 2, backward 4 operations a weight and token


@dataclass(frozen=True, slots=True)
class Interconnect:
    """One kind of connection: ``alpha`` seconds a message, ``bandwidth`` bytes a second and direction."""

    alpha: float
    bandwidth: float

    def ring(self, size: float, devices: int) -> float:
        """Seconds of a ring reduce-scatter, or of an all-gather, of ``size`` bytes in all."""
        if devices == 1:
            return 0.0
        return (devices - 1) * (self.alpha + size / devices / self.bandwidth)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes of ``per_node`` devices, joined by ``inside`` and ``between``."""

    per_node: int
    inside: Interconnect
    between: Interconnect

    def half(self, size: float, devices: int) -> float:
        """Seconds of a reduce-scatter or an all-gather over devices in as few nodes as hold them."""
        local = min(devices, self.per_node)
        nodes = math.ceil(devices / self.per_node)
        return self.inside.ring(size, local) + self.between.ring(size / local, nodes)

    def all_reduce(self, size: float, devices: int) -> float:
        """Seconds until every device has the sum of all."""
        return 2 * self.half(size, devices)

    def broadcast(self, size: float, devices: int) -> float:
        """Seconds until every device has what one had: in a pipeline along the nodes, then inside each."""
        nodes = math.ceil(devices / self.per_node)
        local = min(devices, self.per_node)
        across = size / self.between.bandwidth + (nodes - 1) * self.between.alpha if nodes > 1 else 0.0
        inside = size / self.inside.bandwidth + (local - 1) * self.inside.alpha if local > 1 else 0.0
        return across + inside


def training_step(
    compute: float, gradients: float, weights: float, cluster: Cluster, devices: int, sharding: Sharding
) -> tuple[float, float]:
    """(seconds of a step, seconds of it that wait for messages) where one device computes ``compute`` seconds.

    ``ddp`` adds the gradients (bytes) of all devices, beside the backward pass. ``fsdp`` gathers the weights (bytes)
    for both passes and scatters the gradients' sums, each layer's beside the one before: what is shorter than the work
    is hidden (Zhao et al. 2023).
    """
    if sharding == "ddp":
        exposed = max(0.0, cluster.all_reduce(gradients, devices) - BACKWARD * compute)
    else:
        traffic = 2 * cluster.half(weights, devices) + cluster.half(gradients, devices)
        exposed = max(0.0, traffic - compute)
    return compute + exposed, exposed


def longest_answers(
    lengths: Sequence[int], rows: int, devices: int, *, seed: int = 0, rounds: int = 50
) -> tuple[float, float]:
    """(mean over devices of their longest answer, longest of all): tokens, where answers are as long as ``lengths``.

    ``rows`` answers are dealt to the devices in equal shares; each device decodes until its own longest is done, and
    the step waits for the last device. The mean of ``rounds`` drawings.
    """
    draw = random.Random(seed)
    share = math.ceil(rows / devices)
    means, most = 0.0, 0.0
    for _ in range(rounds):
        longest = [max(draw.choices(lengths, k=share)) for _ in range(devices)]
        means += sum(longest) / devices
        most += max(longest)
    return means / rounds, most / rounds


def fit_link(sizes: Sequence[float], seconds: Sequence[float], devices: int) -> Interconnect:
    """The link that explains measured all-reduces best: weighted least squares of 2(N − 1)(α + size / N × β).

    Each measurement weighs by its inverse square, so that small messages count as much as large ones.
    """
    rows = [
        (2 * (devices - 1), 2 * (devices - 1) / devices * size, took) for size, took in zip(sizes, seconds, strict=True)
    ]
    a = sum((x / t) ** 2 for x, _y, t in rows)
    b = sum(x * y / t**2 for x, y, t in rows)
    c = sum((y / t) ** 2 for _x, y, t in rows)
    p, q = sum(x / t for x, _y, t in rows), sum(y / t for _x, y, t in rows)
    determinant = a * c - b * b
    alpha, beta = (p * c - q * b) / determinant, (a * q - b * p) / determinant
    return Interconnect(max(alpha, 0.0), 1 / max(beta, 1e-15))
