"""Low-rank adapters that start at the weights they are on (PiSSA, OLoRA), the weights themselves left as they are.

Both papers take the start out of the base, s·B₀A₀, so that adapter and remainder make up the weight. The adapter then
fits that remainder alone, in the base's number format, and the base without it is no model at all. Here the adapter has
twice the rank, and its second half, frozen, is −B₀A₀: gradients of the first half are the papers', the base with the
adapter off is the base, and what is saved is a low-rank adapter on it like any other.
"""

from collections.abc import Callable

import torch
from peft import PeftModel
from transformers.pytorch_utils import Conv1D

from alignment.recipe.base import Lora


@torch.no_grad()
def start_at_weights(model: PeftModel, lora: Lora) -> None:
    """Puts fresh factors of twice the rank at their start, and keeps gradients from their second half."""
    for module in model.modules():
        if not hasattr(module, "lora_A") or "default" not in module.lora_A:
            continue
        base, rank = module.get_base_layer(), lora.rank
        weight = (base.weight.T if isinstance(base, Conv1D) else base.weight).float()
        down, up = start_factors(weight, lora.init, rank, module.scaling["default"])
        first, second = module.lora_A["default"].weight, module.lora_B["default"].weight
        first.data = torch.cat([down, down]).to(first)
        second.data = torch.cat([up, -up], dim=1).to(second)
        first.register_hook(_first_half(rank, dim=0))
        second.register_hook(_first_half(rank, dim=1))


def start_factors(weight: torch.Tensor, init: str, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A (r, inputs) and B (outputs, r) of a weight (outputs, inputs).

    PiSSA: s·BA is the weight's best approximation of rank r (Meng et al. 2024, equations 2 and 3). OLoRA: BA is what
    the first r columns of Q and rows of R make (Büyükakyüz 2024, section 3).
    """
    if init == "olora":
        q, r = torch.linalg.qr(weight)
        return r[:rank], q[:, :rank]
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    roots = (values[:rank] / scale).sqrt()
    return roots[:, None] * right[:rank], left[:, :rank] * roots


def _first_half(rank: int, *, dim: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def keep(gradient: torch.Tensor) -> torch.Tensor:
        kept = gradient.clone()
        kept.narrow(dim, rank, rank).zero_()
        return kept

    return keep
