"""Whether a model keeps the examples apart that share a row (``packing: true``), found out by a forward pass.

TRL marks where an example begins by positions that start again, and passes no mask. Families that make their mask from
positions keep examples apart; others (OPT, BLOOM, MPT, recurrent models …) let each see those before it.
"""

from typing import Any

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from alignment.errors import StageError

PROBE = 6  # tokens of each example
ROUNDING = 1e-3  # of the largest logit


def check_packing(model: Any) -> None:
    """Raises StageError where a token of an example changes the logits of the next example in its row."""
    if leaks(model):
        raise StageError(
            f"packing: {type(model).__name__} lets the examples of a row see each other; set packing to false"
        )


def leaks(model: Any) -> bool:
    """Whether logits of a packed example change with the example before it, or with its being packed at all."""
    size = model.get_input_embeddings().weight.shape[0]
    first, other = (torch.arange(start, start + PROBE) % size for start in (0, PROBE))
    second = torch.arange(2 * PROBE, 3 * PROBE) % size
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            after_first, after_other = (_packed_logits(model, before, second) for before in (first, other))
    except TypeError:  # it takes no positions, so it cannot know where an example begins
        return True
    finally:
        model.train(was_training)
    tolerance = ROUNDING * after_first.abs().max().item()
    return not torch.allclose(after_first, after_other, rtol=0, atol=tolerance)


def _packed_logits(model: Any, before: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """Logits (T, V) of ``example`` (T,) behind ``before``, as TRL's collator packs them."""
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    batch = collate([{"input_ids": ids.tolist()} for ids in (before, example)])
    batch.pop("labels")
    inputs = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}
    logits: torch.Tensor = model(**inputs, use_cache=False).logits[0, len(before) :].float()
    return logits
