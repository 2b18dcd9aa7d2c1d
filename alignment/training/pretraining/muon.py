"""Muon on the matrices of a model's layers, and AdamW on the rest, as one optimizer with one learning rate.

Muon (Jordan et al. 2024) turns the momentum of a matrix into the nearest orthogonal one, by Newton-Schulz steps, so
that all its directions learn alike. Embeddings, head and norms are no such matrices. Its steps are scaled by
0.2 √(longer side), which gives them the root mean square of AdamW's (Liu et al. 2025, section 2.2).
"""

from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer

from alignment.errors import StageError


class MuonAndAdamW(Optimizer):
    """PyTorch's two optimizers, whose groups and states are those of this one."""

    def __init__(
        self,
        matrices: list[torch.nn.Parameter],
        others: list[dict[str, Any]],
        *,
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        self.muon = Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = AdamW(others, lr=learning_rate, betas=betas)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Has both read and write the groups and the state of this optimizer, which schedules and checkpoints see."""
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self.muon.state = self.adamw.state = self.state

    def step(self, closure: Any = None) -> Any:
        """A step of both."""
        loss = None if closure is None else closure()
        self.muon.step()  # type: ignore[no-untyped-call]  # PyTorch has no types for it
        self.adamw.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        super().load_state_dict(state_dict)
        self._share()


def muon_optimizer(
    model: Any, *, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> MuonAndAdamW:
    """The optimizer of all of a model's weights. Vectors do not decay.

    Raises StageError where the layers' weights are stacks of matrices, as experts are, which Muon does not train.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    outer = {id(end.weight) for end in ends if end is not None}
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    if (stack := next((name for name, weight in named if weight.ndim > 2), None)) is not None:
        raise StageError(f"muon trains matrices, and {stack} is a stack of them: take adamw")
    matrices = [weight for _name, weight in named if weight.ndim == 2 and id(weight) not in outer]
    embeddings = [weight for _name, weight in named if id(weight) in outer]
    vectors = [weight for _name, weight in named if weight.ndim < 2]
    others = [{"params": embeddings, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return MuonAndAdamW(matrices, others, learning_rate=learning_rate, weight_decay=weight_decay, betas=betas)
