"""Everything wrong with a recipe, its data and its model that can be known without training: all at once."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alignment.checks.adapters.kinds import attachment_faults, kind_faults
from alignment.checks.adapters.lora import stacking_faults
from alignment.checks.adapters.quantised_base import adapters_only_faults, held_base_faults
from alignment.checks.compression.quantised import (
    export_faults,
    quantised_base_faults,
    quantised_policy_faults,
    rounding_faults,
)
from alignment.checks.data import data_faults, read_data
from alignment.checks.graph import wiring_faults
from alignment.checks.held_out import held_out_faults
from alignment.checks.judges import judge_faults
from alignment.checks.metrics import metric_faults
from alignment.checks.rewards import reward_faults
from alignment.errors import Fault, InputError
from alignment.recipe import yaml_file
from alignment.recipe.base import MADE_BASE
from alignment.recipe.resolved import ResolvedRecipe
from alignment.recipe.yaml_file import Document
from alignment.workspace import Workspace


def check_recipe(resolved: ResolvedRecipe, workspace: Workspace | None = None) -> list[Fault]:
    """The faults of a recipe, in the order stages, data, model, lengths; empty where it can run.

    A converted model in ``workspace`` is used where there is one. The model part imports transformers.
    """
    recipe, files = resolved.recipe, resolved.data
    faults = wiring_faults(recipe) + list(quantised_policy_faults(recipe)) + list(stacking_faults(recipe))
    faults += [*kind_faults(recipe), *adapters_only_faults(recipe)]
    data, unreadable = read_data(recipe, files)
    faults += unreadable
    faults += data_faults(recipe, files, data)
    faults += held_out_faults(recipe, files, data)
    faults += reward_faults(recipe, files, data.prompts, data.held_out_prompts)
    asked = "held_out_prompts" if "held_out_prompts" in files else "prompts"
    if asked not in data.incomplete:  # whether none of them has a reference is not known otherwise
        faults += metric_faults(recipe, data.prompts, data.held_out_prompts)
    faults += judge_faults(recipe, files)
    if any(stage.encoder_used() is not None for stage in recipe.stages.values()):
        from alignment.checks.encoders.faults import encoder_faults

        faults += encoder_faults(recipe, files)

    from alignment.checks.lengths import length_faults
    from alignment.checks.model import architecture_faults, attention_faults, device_faults
    from alignment.checks.pretraining.made_model import corpus_faults, inspect_recipe, is_exact, recipe_config
    from alignment.checks.rendering import product_faults
    from alignment.checks.seq2seq.faults import encoder_decoder_faults
    from alignment.models.seq2seq.architecture import is_encoder_decoder

    faults += device_faults(recipe) + attention_faults(recipe)
    try:
        model = None if "corpus" in data.incomplete else inspect_recipe(resolved, workspace)
    except InputError as error:
        model, faults = None, [*faults, *error.faults]
    if model is not None:
        config = recipe_config(resolved, workspace)
        if is_encoder_decoder(config):
            faults += encoder_decoder_faults(recipe, config)
        elif recipe.model.base != MADE_BASE:
            faults += architecture_faults(recipe, workspace)
        faults += corpus_faults(resolved, data.corpus, model, config)
        faults += quantised_base_faults(recipe)
        faults += attachment_faults(recipe, config)
        faults += held_base_faults(recipe, config)
        faults += export_faults(recipe, config, model.tokenizer)
        faults += rounding_faults(recipe, config)
        faults += product_faults(recipe, files, model.tokenizer)
        if any(stage.is_outside() for stage in recipe.stages.values()):
            from alignment.checks.compression.outside_models import outside_model_faults

            faults += outside_model_faults(recipe, files, model, config, workspace)
        if is_exact(resolved, data.corpus):
            faults += length_faults(recipe, files, data, model)
    return placed(faults, resolved.path)


def placed(faults: Sequence[Fault], recipe_path: Path) -> list[Fault]:
    """Faults of a recipe's fields, with the recipe's file and the fields' lines; others as they are."""
    document = _document(recipe_path)
    return list(dict.fromkeys(_placed(_as_written(fault, document), recipe_path, document) for fault in faults))


def _as_written(fault: Fault, document: Document) -> Fault:
    """A fault of a stage that rounds have made, at the stage that the recipe has: the same in each round is one."""
    parts = (fault.field or "").split(".")
    written = document.value if isinstance(document.value, dict) else {}
    if fault.file is not None or parts[0] != "stages" or not isinstance(written.get("rounds"), dict):
        return fault
    stem, _, turn = parts[1].rpartition("_")
    if parts[1] in written.get("stages", {}) or stem not in written.get("stages", {}) or not turn.isdecimal():
        return fault
    return replace(fault, field=".".join(("stages", stem, *parts[2:])))


def _document(recipe_path: Path) -> Document:
    """The recipe's file for its line numbers; none where the recipe was not read from a file."""
    try:
        return yaml_file.parse(recipe_path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, InputError):
        return Document(None)


def _placed(fault: Fault, recipe_path: Path, document: Document) -> Fault:
    """A fault of a recipe's field, with the recipe's file and the field's line."""
    if fault.file is not None or fault.field is None:
        return fault
    at = tuple(int(part) if part.isdecimal() else part for part in fault.field.split("."))
    return replace(fault, file=str(recipe_path), row=document.line(at))
