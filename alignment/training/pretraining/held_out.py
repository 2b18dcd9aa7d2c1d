"""The perplexity of held-out documents, with an interval over documents."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alignment.evaluation.bootstrap import Measure, Sums, estimate
from alignment.training.pretraining.rows import IGNORED, PackedRows, batches


@torch.no_grad()
def document_likelihoods(model: Any, rows: PackedRows, batch_size: int, *, bfloat16: bool) -> NDArray[np.float64]:
    """(documents, 2): of each, the negative log-likelihood of its tokens in nats, and how many these are.

    The model is patched by :func:`alignment.training.response_head.add_response_head`. A sharded one is asked by all
    its workers together.
    """
    count = int(rows.packed.documents.max()) + 1
    sums = torch.zeros(count, 2, dtype=torch.float64)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        for batch in batches(rows, batch_size):
            documents = batch.pop("documents")[:, 1:]
            mask = batch["labels"][:, 1:] != IGNORED
            given = {name: value.to(device) for name, value in batch.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                read = model(**given, fused_lm_head=True)
            lost = torch.stack([-read.log_probs.cpu().double()[mask], mask[mask].double()], dim=1)
            sums.index_add_(0, documents[mask].long(), lost)
    finally:
        model.train(was_training)
    found: NDArray[np.float64] = sums.numpy()
    return found


def perplexity_of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(nats a token), (..., 2) → (...); NaN where there is no token."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.exp(sums[..., 0] / sums[..., 1]), dtype=np.float64)


def held_out_perplexity(documents: NDArray[np.float64], seed: int) -> Measure:
    """The perplexity of all tokens and its 95 % interval: the bootstrap's over documents (Efron 1987)."""
    counted = documents[:, 1] > 0
    return estimate(Sums(documents, counted, perplexity_of), seed=seed)
