"""Writes docs/families.md: what tiny models of each family do, found by running them. `make reference` runs it."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM
from trl.trainer.utils import add_fused_lm_head

from alignment.checks.causality import architecture_faults
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
from alignment.records import Sampling
from alignment.rollouts.transformers_engine import TransformersEngine
from alignment.text_rules.encoder import pair_frame
from alignment.training.response_head import add_response_head
from tests.tiny_encoders import ENCODERS, write_encoder
from tests.tiny_families import DECODERS, REFUSED, build, config
from tests.tiny_seq2seq import FAMILIES, write_seq2seq

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


BOTH_TEXT = """\
Encoder-decoders are trained by `sft` and `dpo`, sampled and evaluated ([how](training.md#encoder-decoders)); every
other stage refuses them. *Exact*: log-probabilities that are trained on, of a padded batch, differ from those of the
plain class by at most 2e-5 nats. *Sampled*: greedy answers are those of transformers' `generate`, token for token.
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


@torch.no_grad()
def both_row(name: str) -> str:
    """The row of a family of encoder-decoders."""
    with tempfile.TemporaryDirectory() as folder:
        model = AutoModelForSeq2SeqLM.from_pretrained(write_seq2seq(Path(folder), name)).eval()
    pad, end = model.config.pad_token_id, model.config.eos_token_id
    prompts = [[*range(10, 10 + length), end] for length in (3, 7, 5)]
    answers = [[*range(20, 20 + length), end] for length in (4, 2, 6)]
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([one + [pad] * (width - len(one)) for one in rows])
    mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in rows])
    labels = ids.masked_fill(mask == 0, -100)
    for at, prompt in enumerate(prompts):
        labels[at, : len(prompt)] = -100
    ours = copy.deepcopy(model)
    add_fused_lm_head(ours)
    add_response_head(ours)
    found = ours(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs.sum(-1)
    expected = [
        -len(answer) * float(model(input_ids=torch.tensor([prompt]), labels=torch.tensor([answer])).loss)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    exact = max(abs(one - other) for one, other in zip(found.tolist(), expected, strict=True)) <= EXACT
    adapted = add_lora(copy.deepcopy(model), Lora(rank=4, alpha=8))
    count = sum("lora_B" in key for key, _weight in adapted.named_parameters())
    cells = [name, type(model).__name__, "yes" if exact else "no", str(count), "yes" if _same_answers(model) else "no"]
    return f"| {' | '.join(cells)} |"


def _same_answers(model: Any) -> bool:
    """Whether greedy answers of a padded batch are those of transformers, one prompt at a time."""
    end = model.config.eos_token_id
    model.generation_config.forced_eos_token_id = None
    prompts = [[*range(10, 10 + length), end] for length in (3, 7, 5)]
    engine = TransformersEngine(model, _Undecoded(), stop_ids={end})  # type: ignore[arg-type]
    drawn = engine.generate(prompts, sampling=Sampling(temperature=0, max_new_tokens=12), seeds=range(3))
    for prompt, (one,) in zip(prompts, drawn, strict=True):
        expected = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=12, do_sample=False, num_beams=1)
        if list(one.tokens) != expected[0, 1 : 1 + len(one.tokens)].tolist():
            return False
    return True


class _Undecoded:
    """In a tokenizer's place, where tokens alone are looked at."""

    def decode(self, _tokens: Any, **_options: Any) -> str:
        return ""


def page() -> str:
    """The page's text."""
    head = ("Family", "Class", "Logits", "Exact", "Tree", "Adapted", "Experts", "Sampled", "Reward")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *map(row, DECODERS)]
    refused = ["", "`rlhf check` refuses, as a base of training:", ""]
    for name in sorted(set(REFUSED) - set(FAMILIES)):
        (fault, *_) = architecture_faults(config(name), name, sampled=True)
        refused.append(f"- {fault.problem}")
    encoders = ["", ENCODER_TEXT, "| Encoder | Class | Head | Padded | Adapted |", "|---|---|---|---|---|"]
    both = ["", BOTH_TEXT, "| Encoder-decoder | Class | Exact | Adapted | Sampled |", "|---|---|---|---|---|"]
    tables = [*lines, *refused, *both, *map(both_row, FAMILIES), *encoders, *map(encoder_row, ENCODERS)]
    return TEXT + "\n".join(tables) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
