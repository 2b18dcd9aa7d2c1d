"""What a recipe says for all of its stages: model, data, seed, resources."""

from typing import Annotated, Literal

from pydantic import Field

from alignment.recipe.base import Name, Settings
from alignment.recipe.resources import Resources

Precision = Literal["auto", "bfloat16", "float32"]
BaseScheme = Literal["nf4", "int8"]


Attention = Literal["sdpa", "eager", "flash_attention_2", "flex_attention"]
NEEDS_GPU: tuple[Attention, ...] = ("flash_attention_2", "flex_attention")


class ModelSettings(Settings):
    """The model to align: a local folder, a hub name, or ``embedded:smollm2-135m``."""

    base: str
    """A local folder, a hub name, or `embedded:smollm2-135m`. To be left out, with `model` or alone, where a stage of
    kind `pretrain` makes the model from nothing: it is `stage:pretrain` then."""
    dtype: Precision = "auto"
    """Type of the weights. `auto`: what the machine multiplies fast; the run's own recipe says which."""
    quantise: BaseScheme | None = None
    """Hold the base in fewer bits while adapters on it are trained (QLoRA; Dettmers et al. 2023): `nf4` is 4 bits and a
    scale for each 64 weights, `int8` 8 bits and a scale for each output (bitsandbytes). It is so in every stage that
    reads the base or an adapter on it; the files of the base stay as they are. null: the base in `dtype`."""
    attention: Attention | None = None
    """How attention is computed: `sdpa` (torch's fused one), `eager` (its plain products), `flash_attention_2` (the
    package `flash-attn`, or its kernel from a hub) or `flex_attention`; the last two on a GPU. The results are the same
    but for rounding. Beginnings that rows share are computed once with `sdpa` alone. null: what the model's
    class takes by itself, mostly `sdpa`."""
    revision: str | None = None
    """Revision of a hub model. Pin it: else the model can change under the recipe."""
    chat_template: str | None = None
    """A Jinja file, for a base model that has no chat template, or for a tokenizer that is made in place of ChatML."""
    registered_name: Name = "policy"
    """Name under which versions are registered, as in `policy@champion`."""


class DataSettings(Settings):
    """Where the data is. Paths are relative to the recipe's own folder."""

    prompts: str | None = None
    """File of prompts (JSONL, JSON or Parquet; may be gzipped)."""
    demonstrations: str | None = None
    """File of demonstrations (JSONL, JSON or Parquet; may be gzipped)."""
    preferences: str | None = None
    """File of preference pairs: TRL's, HH-RLHF's or Open-Assistant's."""
    feedback: str | None = None
    """File of single answers with thumbs: rows of `prompt`, `completion` and `label`, true for a good answer (JSONL,
    JSON or Parquet; may be gzipped)."""
    corpus: str | None = None
    """File of documents to train on from nothing: rows of `text` (JSONL, JSON or Parquet; may be gzipped), or a plain
    text file (.txt; may be gzipped) with an empty line between two documents."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the prompts, and of preference pairs, that no stage trains on, chosen by their digests."""
    held_out_prompts: str | None = None
    """File of prompts that evaluations and tournaments ask. null: the share `held_out` of `prompts`."""


class RunSettings(Settings):
    """What a stage is told of the recipe that it stands in: nothing of other stages, of schedules or of notices."""

    seed: int
    """Seed of every random draw."""
    model: ModelSettings
    """The model to align."""
    held_out: float
    """Share of the prompts, and of preference pairs, that no stage trains on."""
    resources: Resources = Resources()
    """Where stages run, and on how many processes."""
