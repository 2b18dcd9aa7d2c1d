"""What is wrong with models from outside a recipe: their files, and who reads one with another vocabulary."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from alignment.checks.model import HUB_FILES, Inspected
from alignment.errors import Fault, InputError
from alignment.models.weights import weight_faults
from alignment.recipe.graph import of_type, stage_inputs
from alignment.recipe.judges import folder_data
from alignment.recipe.metrics import Perplexity
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.compression.outside_model import FOLDER, OutsideModelStage
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.workspace import Workspace

_log = logging.getLogger(__name__)
BY_ITS_TEXT = {  # roles in which a model is asked in messages, and nothing but its text is looked at
    ("sample", "model"),
    ("synthesis", "models"),
    ("benchmark", "models"),
    ("constitution", "writer"),
    ("evaluate", "against"),
}
JUDGE_ROLES = ("judge", "rewards")


class Vocabulary(NamedTuple):
    """Which number each token has, and of how many numbers a model gives the logits."""

    tokens: Mapping[str, int]
    size: int


def outside_model_faults(
    recipe: Recipe, files: Mapping[str, Path], base: Inspected, config: Any, workspace: Workspace | None
) -> Iterator[Fault]:
    """Models that are not there or not whole, and stages that would compare tokens of one with another vocabulary."""
    own = Vocabulary(base.tokenizer.get_vocab(), config.get_text_config().vocab_size)
    for name, stage in of_type(recipe.stages, OutsideModelStage):
        field = f"stages.{name}.{'version' if stage.version else 'folder' if stage.folder else 'hub'}"
        try:
            found = _vocabulary(stage, files, workspace, field)
        except InputError as error:
            yield from (replace(fault, field=field) if fault.file is None else fault for fault in error.faults)
            continue
        if found is not None and found != own:
            yield from _reader_faults(recipe, name, found.size, own.size)


def _vocabulary(
    stage: OutsideModelStage, files: Mapping[str, Path], workspace: Workspace | None, field: str
) -> Vocabulary | None:
    """A model's vocabulary; None of a version where no workspace is known. Raises InputError for what is not whole."""
    from transformers import AutoConfig

    from alignment.chat import load_tokenizer, template_faults
    from alignment.checks.causality import architecture_faults, missing_weights
    from alignment.stages.compression.outside_model import outside_folder

    data = {} if stage.folder is None else {FOLDER: files[folder_data(stage.folder)]}
    configured: Path | None = None
    if stage.version is not None:
        if workspace is None:
            return None
        from alignment.recipe.stages.compression.outside_model import VERSION, VERSION_BASE
        from alignment.registry.outside_models import version_files

        data = version_files(workspace, stage.version)
        configured = data.get(VERSION_BASE, data[VERSION])
    folder = outside_folder(stage, data, HUB_FILES, field)
    if stage.folder is not None:
        if not (folder / "config.json").is_file():
            problem = f"{folder} is an adapter, not a model"
            raise InputError([Fault(problem, "merge it into its base first, and give that folder")])
        if broken := weight_faults(folder):
            raise InputError(broken)
    try:
        config = AutoConfig.from_pretrained(configured or folder)
    except (OSError, ValueError) as error:
        problem = f"its config.json is of no model that transformers knows: {str(error).splitlines()[0][:160]}"
        raise InputError([Fault(problem, "give a causal language model", str(folder))]) from error
    if faults := architecture_faults(config, str(folder), sampled=True):
        raise InputError(faults)
    try:
        tokenizer = load_tokenizer(folder)
    except (OSError, ValueError) as error:
        problem = f"its tokenizer cannot be loaded: {str(error).splitlines()[0][:160]}"
        raise InputError([Fault(problem, "give a whole Hugging Face model folder", str(folder))]) from error
    faults = template_faults(tokenizer, str(folder))
    if faults := faults or (missing_weights(str(folder)) if stage.folder is not None else []):
        raise InputError(faults)
    return Vocabulary(tokenizer.get_vocab(), config.get_text_config().vocab_size)


def _reader_faults(recipe: Recipe, source: str, size: int, own: int) -> Iterator[Fault]:
    sizes = f"{size} tokens, and the base {own}" if size != own else f"{size} tokens as the base has, and others"
    told = {  # a mean over tokens says nothing beside one over other tokens
        name
        for name, stage in of_type(recipe.stages, EvaluateStage)
        if any(isinstance(metric, Perplexity) for metric in stage.metrics)
    }
    for name, stage in recipe.stages.items():
        for role, read in stage_inputs(stage).items():
            if source not in read or role in JUDGE_ROLES:
                continue
            if (stage.kind, role) in BY_ITS_TEXT and name not in told:
                continue
            problem = f"{source} has another vocabulary ({sizes}), and {name} compares models token by token"
            remedy = "name a model with the base's tokenizer"
            if (stage.kind, role) == ("distil", "teacher"):
                remedy += ", or learn from its answers: sample, rejection_sampling, sft"
            yield Fault(problem, remedy, field=f"stages.{name}.{role}")
