"""Losses of preference pairs that need no reference: SimPO and ORPO, on TRL's batches and our head.

TRL keeps both among its experiments, which it says may change or go at any time; they tokenise by themselves and hold
all logits. Their losses are what the tests compare these with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from torch.nn.functional import logsigmoid

from alignment.distributed.accumulation import TOKEN_WEIGHT
from alignment.training.preference.dpo_trainer import TokenisedDPOTrainer
from alignment.training.response_head import add_response_head

NEAREST = -1e-6  # log-probability above which an answer's odds are no longer computed: those of one are infinite


@dataclass(frozen=True, slots=True)
class AnswerLogprobs:
    """(B,) the mean log-probability per token of the chosen and of the rejected answers."""

    chosen: torch.Tensor
    rejected: torch.Tensor


PairLoss: TypeAlias = Callable[[AnswerLogprobs], torch.Tensor]
"""The loss of each pair, (B,)."""


@dataclass(frozen=True, slots=True)
class PairObjective:
    """What is minimised on a batch.

    Attributes:
        pair_loss: the loss of each pair.
        pair_weight: its weight.
        nll_weight: that of the mean negative log-likelihood of the chosen answers' tokens.
    """

    pair_loss: PairLoss
    pair_weight: float = 1.0
    nll_weight: float = 0.0


def simpo_loss(logprobs: AnswerLogprobs, *, beta: float, gamma: float) -> torch.Tensor:
    """(B,) −log σ(β (mean log π(y_w) − mean log π(y_l)) − γ) (Meng et al. 2024, eq. 6)."""
    return -logsigmoid(beta * (logprobs.chosen - logprobs.rejected) - gamma)


def odds_ratio_loss(logprobs: AnswerLogprobs) -> torch.Tensor:
    """(B,) −log σ(log odds(y_w) − log odds(y_l)) (Hong et al. 2024, eq. 7); p is the mean per token, geometrically."""
    return -logsigmoid(log_odds(logprobs.chosen) - log_odds(logprobs.rejected))


def log_odds(logprobs: torch.Tensor) -> torch.Tensor:
    """log(p / (1 − p)) of log p, in float32: 1 − p is computed without loss of digits at both ends."""
    kept = logprobs.float().clamp(max=NEAREST)
    return kept - torch.log(-torch.expm1(kept))


class ReferenceFreeTrainer(TokenisedDPOTrainer):
    """TRL's DPO trainer with another loss: no reference is held, and none is computed."""

    objective: PairObjective

    def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
        if isinstance(self.model, PeftModel) and "ref" in self.model.peft_config:
            self.model.delete_adapter("ref")  # TRL's copy of the adapter
        add_response_head(self.model, statistics=False)
        return dataset

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """The loss of a batch, whose first half are the chosen answers."""
        token_weight = inputs.pop(TOKEN_WEIGHT, 1.0)
        answer_mask = inputs["completion_mask"][..., 1:].bool()
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        output = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels, use_cache=False,
            fused_lm_head=True,
        )  # fmt: skip
        token_logprobs = output.log_probs[:, -answer_mask.shape[1] :]
        sums = torch.where(answer_mask, token_logprobs, 0.0).sum(-1)
        lengths = answer_mask.sum(-1).clamp(min=1)
        logprobs = AnswerLogprobs(*(sums / lengths).chunk(2))
        pairs = self.objective.pair_loss(logprobs).mean()
        nll = -sums.chunk(2)[0].sum() / lengths.chunk(2)[0].sum()
        self._note(logprobs, pairs, nll, inputs)
        loss: torch.Tensor = self.objective.pair_weight * pairs
        return loss + self.objective.nll_weight * token_weight * nll if self.objective.nll_weight else loss

    def _note(self, logprobs: AnswerLogprobs, pairs: torch.Tensor, nll: torch.Tensor, inputs: dict[str, Any]) -> None:
        """The figures of a batch, under the names that TRL gives DPO's; rewards are β × the mean log-probability."""
        chosen, rejected = (self.accelerator.gather(side.detach()) for side in (logprobs.chosen, logprobs.rejected))
        figures = {
            "rewards/chosen": self.beta * chosen.mean(),
            "rewards/rejected": self.beta * rejected.mean(),
            "rewards/accuracies": (chosen > rejected).float().mean(),
            "rewards/margins": self.beta * (chosen - rejected).mean(),
            "pair_loss": self.accelerator.gather(pairs.detach()).mean(),
            "nll_loss": self.accelerator.gather(nll.detach()).mean(),
        }
        for name, value in figures.items():
            self._metrics["train"][name].append(value.item())
        self._total_train_tokens += self.accelerator.gather(inputs["attention_mask"].sum()).sum().item()
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
