"""Writes docs/families.md: what tiny models of each family do, found by running them. `make reference` runs it."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from trl.trainer.utils import add_fused_lm_head

from alignment.checks.causality import architecture_faults
from alignment.encoder_text import pair_frame
from alignment.models.adapters import add_lora
from alignment.models.encoders.architecture import head_parts, output_layer
from alignment.models.encoders.model import new_encoder
from alignment.models.families import cache_argument
from alignment.models.families.head import HeadKind, head_kind
from alignment.models.families.lora_targets import lora_targets
from alignment.models.prefix_sharing import share_prefixes
from alignment.models.reward_model import score, score_class
from alignment.recipe.base import Lora
from alignment.recipe.resources import Resources
from alignment.recipe.run_settings import ModelSettings, RunSettings
from alignment.training.response_head import add_response_head
from tests.tiny_encoders import ENCODERS, write_encoder
from tests.tiny_families import DECODERS, REFUSED, build, config

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
EXACT = 2e-5  # nats
HEADS = {HeadKind.PLAIN: "a product", HeadKind.OWN: "its own forward", HeadKind.WHOLE: "whole passes"}
TEXT = """\
<!-- Written by scripts/write_families.py from tiny models of each family: `make reference`. -->
# Model families

Each row is a tiny model of the family's own class with random weights, in float32, that was run when this page was
written.

- *Logits*: how a token's log-probability is made from hidden states: by one product, or by the model's own forward (a
  transform, a cap or a scale lies between). *Exact*: log-probabilities that are trained on differ from the model's own
  by at most 2e-5 nats.
- *Tree*: rows that begin alike are computed once.
- *Adapted*: weights that a LoRA adapter is on, of two layers; *experts* says whether some are experts'.
- *Sampled*: here, in the process; *reward*: whose class a reward model of it has. One that is made here loads in this
  project alone.

Larger models of these families, on GPUs and in bfloat16, were not tried for this page.

"""

ENCODER_TEXT = """\
Encoders start reward models and pair classifiers ([how](training.md#encoders-as-reward-models)). *Head*: the parts
that are in float32 and trained whole. *Padded*: scores of a padded batch and of its rows alone differ by at most 2e-5.
"""


def row(name: str) -> str:
    """A family's row."""
    model = build(name)
    trained = add_lora(copy.deepcopy(model), Lora(rank=4, alpha=8))
    adapted = sum("lora_B" in key for key, _weight in trained.named_parameters())
    targets = lora_targets(model)
    experts = "yes" if any(target.matrices > 1 for target in targets) else "–"
    made = score_class(config(name)).__module__.startswith("alignment")
    tree = share_prefixes(copy.deepcopy(model))
    cells = [
        name, type(model).__name__, HEADS[head_kind(model)], "yes" if difference(model) <= EXACT else "no",
        "yes" if tree else "–", str(adapted), experts, "yes" if cache_argument(model) else "no",
        "made here" if made else "transformers'",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


@torch.no_grad()
def difference(model: Any) -> float:
    """The most by which a trained-on log-probability differs from the model's own, in nats."""
    ids = torch.arange(3, 67).reshape(4, 16)
    expected = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)[:, :-1]
    expected = expected.gather(-1, ids[:, 1:, None])[..., 0]
    ours = copy.deepcopy(model)
    share_prefixes(ours)
    add_fused_lm_head(ours)
    add_response_head(ours)
    mask = torch.ones_like(ids)
    found = ours(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True).log_probs
    return float((found - expected).abs().max())


def encoder_row(name: str) -> str:
    """The row of a family of encoders, as reward models."""
    settings = ModelSettings(base=name, dtype="float32")
    run = RunSettings(seed=0, model=settings, held_out=0.2, resources=Resources(device="cpu"))
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = new_encoder(write_encoder(Path(folder), name), run, 64)
    torch.nn.init.normal_(output_layer(model).weight, generator=torch.Generator().manual_seed(0))
    frame = pair_frame(tokenizer)
    assert frame is not None
    rows = [frame.before + list(range(9, end)) + frame.between + [8, 7] + frame.after for end in (10, 20, 40)]
    together, alone = score(model, tokenizer, rows), [score(model, tokenizer, [one])[0] for one in rows]
    exact = max(abs(one - other) for one, other in zip(together, alone, strict=True)) <= EXACT
    adapted = add_lora(copy.deepcopy(model), Lora(rank=4, alpha=8), reward=True)
    count = sum("lora_B" in key for key, _weight in adapted.named_parameters())
    parts = ", ".join(f"`{part}`" for part in head_parts(model))
    return f"| {name} | {type(model).__name__} | {parts} | {'yes' if exact else 'no'} | {count} |"


def page() -> str:
    """The page's text."""
    head = ("Family", "Class", "Logits", "Exact", "Tree", "Adapted", "Experts", "Sampled", "Reward")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *map(row, DECODERS)]
    refused = ["", "`rlhf check` refuses, as a base of training:", ""]
    for name in REFUSED:
        (fault, *_) = architecture_faults(config(name), name, sampled=True)
        refused.append(f"- {fault.problem}")
    encoders = ["", ENCODER_TEXT, "| Encoder | Class | Head | Padded | Adapted |", "|---|---|---|---|---|"]
    return TEXT + "\n".join([*lines, *refused, *encoders, *map(encoder_row, ENCODERS)]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
