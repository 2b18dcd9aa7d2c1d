"""AdamW with float32 master weights, so that small updates register in a model that computes in bfloat16.

A bfloat16 weight has 8 bits: an update smaller than 1/256 of it is lost, and those of PPO are a thousand times
smaller. So each bfloat16 parameter has a float32 master, which gradients are added to, which Adam changes, and which is
copied back. Adapters in float32 are their own masters.
"""

import math
from typing import Any, Literal

import torch
from torch import nn

from alignment.distributed.dtensor import part_like, total_norm
from alignment.training.schedule import learning_rate_factor, warmup_steps

EPSILON = 1e-5  # of Adam in PPO (Huang et al. 2024, detail 11); PyTorch's 1e-8 makes the first steps much larger


class MasterAdamW:
    """An optimizer and its schedule over ``total`` steps, for named parameters in groups of one learning rate each."""

    def __init__(
        self,
        groups: list[tuple[list[nn.Parameter], float]],
        *,
        total: int,
        warmup: float,
        schedule: Literal["linear", "cosine", "constant"],
        weight_decay: float,
        max_grad_norm: float,
        epsilon: float = EPSILON,
    ) -> None:
        self.pairs: list[tuple[nn.Parameter, torch.Tensor]] = []
        arguments = []
        for parameters, learning_rate in groups:
            masters = [p if p.dtype == torch.float32 else p.detach().float() for p in parameters]
            self.pairs += zip(parameters, masters, strict=True)
            arguments.append({"params": masters, "lr": learning_rate})
        self.max_grad_norm = max_grad_norm
        self.optimizer = torch.optim.AdamW(arguments, eps=epsilon, weight_decay=weight_decay)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, total, warmup_steps(warmup, total), schedule)
        )

    def accumulate(self) -> None:
        """Moves new gradients into the masters'; to be called after each backward pass."""
        for parameter, master in self.pairs:
            if master is not parameter and parameter.grad is not None:
                grad = parameter.grad.float()
                master.grad = grad if master.grad is None else master.grad.add_(grad)
                parameter.grad = None

    def gradients(self) -> list[torch.Tensor]:
        """What has been accumulated, of every weight that is trained: zeros where nothing was."""
        for _parameter, master in self.pairs:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        return [master.grad for _parameter, master in self.pairs if master.grad is not None]

    @torch.no_grad()
    def step(self) -> float:
        """Clips, updates, clears; a gradient that is not finite changes nothing. Returns its norm before clipping."""
        masters = [master for _parameter, master in self.pairs]
        length = total_norm([master.grad for master in masters if master.grad is not None])
        nn.utils.clip_grads_with_norm_(masters, self.max_grad_norm, length)
        norm = float(length)
        if math.isfinite(norm):
            self.optimizer.step()
            for parameter, master in self.pairs:
                if master is not parameter:
                    parameter.copy_(master)
            self.scheduler.step()
        self.clear()
        return norm

    def clear(self) -> None:
        """Forgets the gradients."""
        for parameter, master in self.pairs:
            parameter.grad = master.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers alone, so that it loads with ``weights_only=True``; sharded weights' are in parts."""
        return {
            "masters": [master for parameter, master in self.pairs if master is not parameter],
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"last_epoch": self.scheduler.last_epoch, "_last_lr": self.scheduler.get_last_lr()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave, its tensors whole."""
        masters = [master for parameter, master in self.pairs if master is not parameter]
        for master, saved in zip(masters, state["masters"], strict=True):
            master.copy_(part_like(saved, master))
        moments = {
            place: {name: part_like(value, self.pairs[place][1]) for name, value in held.items()}
            for place, held in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict(state["optimizer"] | {"state": moments})
        self.scheduler.last_epoch = state["scheduler"]["last_epoch"]
        self.scheduler._last_lr = state["scheduler"]["_last_lr"]
