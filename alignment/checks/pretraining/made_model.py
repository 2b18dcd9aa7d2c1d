"""What is known of a model that a recipe is yet to make: its tokenizer, which is trained here as it will be, and its
shape.

Of a corpus of more than :data:`PREVIEW` bytes the first of them are taken: lengths in tokens are estimates then.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.checks.causality import routes
from alignment.checks.model import Inspected, inspect_model, read_config
from alignment.data.corpus import read_corpus
from alignment.errors import Fault, InputError
from alignment.recipe.base import MADE_BASE
from alignment.recipe.graph import of_type
from alignment.recipe.recipe import Recipe
from alignment.recipe.resolved import ResolvedRecipe
from alignment.recipe.stages.pretraining.pretrain import PretrainStage
from alignment.recipe.stages.pretraining.tokenizer import TokenizerStage
from alignment.workspace import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PREVIEW = 16_000_000  # bytes of a corpus, some seconds of training


def inspect_recipe(resolved: ResolvedRecipe, workspace: Workspace | None = None) -> Inspected | None:
    """The tokenizer and context of the model that a recipe begins with; None of one that cannot be made as it stands.

    Raises InputError where there is no such model, or it cannot hold a conversation.
    """
    recipe = resolved.recipe
    if recipe.model.base != MADE_BASE:
        return inspect_model(recipe.model, workspace)
    made = _stages(recipe)
    if made is None or "corpus" not in resolved.data:
        return None
    return Inspected(_tokenizer(resolved, made[1]), made[0].max_length)


def recipe_config(resolved: ResolvedRecipe, workspace: Workspace | None = None) -> "PreTrainedConfig":
    """The configuration of the model that :func:`inspect_recipe` found."""
    recipe = resolved.recipe
    if recipe.model.base != MADE_BASE:
        return read_config(recipe.model, workspace)
    from alignment.training.pretraining.architecture import new_config

    made = _stages(recipe)
    if made is None or made[0].architecture is None:
        raise ValueError("the recipe makes no model")
    return new_config(made[0].architecture, _tokenizer(resolved, made[1]), made[0].max_length)


def is_exact(resolved: ResolvedRecipe, documents: tuple[str, ...]) -> bool:
    """Whether lengths in tokens are those that the run will find."""
    return resolved.recipe.model.base != MADE_BASE or sum(len(text.encode()) for text in documents) <= PREVIEW


def corpus_faults(
    resolved: ResolvedRecipe, documents: tuple[str, ...], model: Inspected, config: Any
) -> Iterator[Fault]:
    """A corpus that is too small, rows longer than the model's context, and settings that its layers do not know."""
    for name, stage in of_type(resolved.recipe.stages, PretrainStage):
        at = f"stages.{name}"
        if model.context is not None and stage.max_length > model.context:
            problem = f"rows of {stage.max_length} tokens, and the model's context is {model.context}"
            yield Fault(problem, f"set it to {model.context} or less", field=f"{at}.max_length")
        if stage.router_loss and not routes(config):
            problem = f"{config.model_type} computes no loss of routers"
            yield Fault(problem, "leave router_loss out", field=f"{at}.router_loss")
        if stage.optimizer == "muon" and _has_experts(config):
            problem = "muon trains matrices, and experts are stacks of them"
            yield Fault(problem, "take adamw", field=f"{at}.optimizer")
        if "corpus" in resolved.data:
            yield from _size_faults(str(resolved.data["corpus"]), stage, documents, model, at)


def _size_faults(
    file: str, stage: PretrainStage, documents: tuple[str, ...], model: Inspected, at: str
) -> Iterator[Fault]:
    if len(documents) == 1:
        yield Fault("a single document, so that none is held out", "give more documents", file=file)
        return
    from alignment.data.split import split_both_sides
    from alignment.training.pretraining.rows import encode_document

    train, _held_out = split_both_sides(documents, stage.held_out, key=lambda document: document)
    counts = accumulate(len(encode_document(model.tokenizer, document)) for document in train)
    most = 0
    for most in counts:
        if most >= stage.max_length:
            return
    if documents:
        problem = f"its {most} tokens do not fill a row of max_length={stage.max_length}"
        yield Fault(problem, "give more documents, or lower it", field=f"{at}.max_length")


def _has_experts(config: Any) -> bool:
    from alignment.models.families.lora_targets import lora_targets, without_weights

    try:
        return any(target.is_parameter for target in lora_targets(without_weights(config)))
    except ValueError:
        return False  # no causal language model, which is said already


def _stages(recipe: Recipe) -> tuple[PretrainStage, TokenizerStage] | None:
    """The stages that make the model: None where one of them is missing, which is another fault."""
    new = next((stage for _name, stage in of_type(recipe.stages, PretrainStage) if stage.model is None), None)
    tokenizer = None if new is None else dict(of_type(recipe.stages, TokenizerStage)).get(new.tokenizer or "")
    return None if new is None or tokenizer is None else (new, tokenizer)


def _tokenizer(resolved: ResolvedRecipe, stage: TokenizerStage) -> Any:
    file = resolved.data["corpus"]
    try:
        changed = file.stat().st_mtime_ns
    except OSError:
        changed = 0
    return _trained(file, changed, stage.model_dump_json(), resolved.recipe.model.chat_template)


@lru_cache(maxsize=2)
def _trained(file: Path, _changed: int, stage: str, template: str | None) -> Any:
    """The tokenizer as its stage will make it. Raises InputError where it cannot."""
    from alignment.chat import end_turns, template_faults
    from alignment.training.pretraining.bpe import train_tokenizer

    documents = read_corpus(file).documents
    sizes = accumulate(len(document.encode()) for document in documents)
    taken = [document for document, size in zip(documents, sizes, strict=True) if size <= PREVIEW] or documents[:1]
    try:
        text = None if template is None else Path(template).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        problem = f"{template} cannot be read"
        raise InputError([Fault(problem, "name a Jinja file", field="model.chat_template")]) from None
    tokenizer = train_tokenizer(TokenizerStage.model_validate_json(stage), taken, text)
    end_turns(tokenizer, file.parent / "no such folder")
    if faults := template_faults(tokenizer, str(template or "the tokenizer's template")):
        raise InputError(faults)
    return tokenizer
