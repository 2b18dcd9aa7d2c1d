"""How a mixture of experts uses its experts: the share of tokens that each is given, and which are hardly given any.

The routers of transformers give, of each token, the numbers of the experts that they choose; they are listened to while
a model reads held-out documents.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

STARVED = 0.1  # of an even share, below which an expert learns next to nothing


def routers_of(model: Any) -> list[tuple[str, Any]]:
    """A model's routers by name, in the order of its layers: the modules that choose experts for tokens."""
    return [(name, module) for name, module in model.named_modules() if type(module).__name__.endswith("TopKRouter")]


class ExpertLoad:
    """Counts of the tokens that each expert is given, by router, (layers, experts)."""

    def __init__(self) -> None:
        self.counts: dict[str, torch.Tensor] = {}

    @contextmanager
    def counting(self, model: Any) -> Iterator[None]:
        """Counts whatever the model reads in the meantime."""
        hooks = [module.register_forward_hook(self._counter(name)) for name, module in routers_of(model)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _counter(self, name: str) -> Any:
        def count(module: Any, _given: Any, chosen: tuple[torch.Tensor, ...]) -> None:
            logits, _scores, indices = chosen
            found = torch.bincount(indices.flatten().cpu(), minlength=logits.shape[-1])
            self.counts[name] = self.counts.get(name, torch.zeros_like(found)) + found

        return count

    def loads(self) -> list[list[float]]:
        """(layers, experts): each expert's tokens over an even share of them; 1 is even, 0 none."""
        return [(count * len(count) / count.sum()).tolist() for count in self.counts.values()]


def load_metrics(loads: list[list[float]]) -> dict[str, float]:
    """The greatest and the least load, and how many experts are starved; nothing of a model without experts."""
    each = [load for layer in loads for load in layer]
    if not each:
        return {}
    starved = sum(load < STARVED for load in each)
    return {"expert_load.max": max(each), "expert_load.min": min(each), "starved_experts": float(starved)}


def load_alarm(loads: list[list[float]]) -> str | None:
    """What is wrong with the loads, in words; None where every expert has its part."""
    starved = [
        f"{expert} of layer {layer}"
        for layer, experts in enumerate(loads)
        for expert, load in enumerate(experts)
        if load < STARVED
    ]
    if not starved:
        return None
    more = f" and {len(starved) - 3} more" if len(starved) > 3 else ""
    return (
        f"starved_experts: expert {', '.join(starved[:3])}{more} see less than a tenth of an even share of tokens; "
        "raise router_loss"
    )
