"""Tensors of which each of several workers holds a part (DTensor): made whole for a file, and cut again from one."""

from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(value: Any, *, kept: bool) -> Any:
    """``value``, lists and dicts of tensors included, with those in parts made whole in main memory; others stay.

    Every worker has to come here. Where not ``kept``, a tensor is given to the others and then forgotten: it is None.
    """
    if isinstance(value, dict):
        return {name: whole(one, kept=kept) for name, one in value.items()}
    if isinstance(value, list):
        return [whole(one, kept=kept) for one in value]
    if not isinstance(value, DTensor):
        return value
    full: torch.Tensor = value.full_tensor()
    return full.detach().cpu() if kept else None


def part_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This worker's part of a whole ``tensor``, as it holds one of ``like``; all of it where that is whole, too.

    A tensor of another shape (a count of steps) is nobody's part. Nothing is sent: every worker has the whole.
    """
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def total_norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The Euclidean norm () of all tensors together, over all workers' parts."""
    norm = torch.nn.utils.get_total_norm(tensors)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
