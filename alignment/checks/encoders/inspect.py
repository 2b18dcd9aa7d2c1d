"""An encoder that a stage starts from, as its files tell it: its tokenizer, and its shape without weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alignment.errors import Fault, InputError
from alignment.recipe.judges import folder_data
from alignment.recipe.stages.spec import StageSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REMEDY = "give an encoder such as BERT, RoBERTa or ModernBERT"


class InspectedEncoder(NamedTuple):
    """``tokenizer`` cuts as it will in the stage; ``model`` has one output and is on PyTorch's meta device."""

    folder: Path
    config: Any
    tokenizer: "PreTrainedTokenizerBase"
    model: Any


def encoder_field(stage: StageSettings) -> str:
    """The setting, within the stage, that says which encoder it is."""
    settings = stage.encoder_used()
    assert settings is not None
    return "encoder.hub" if settings.folder is None else "encoder.folder"


def inspect_encoder(stage: StageSettings, files: Mapping[str, Path]) -> InspectedEncoder:
    """The encoder of a stage that has one. ``files`` are the recipe's (:func:`alignment.recipe.files.resolve_data`).

    Raises InputError where there is none, or where it is no encoder.
    """
    from transformers import AutoConfig

    from alignment.models.encoders.files import LIGHT, encoder_folder
    from alignment.models.encoders.model import UNBOUNDED, load_encoder_tokenizer, without_weights

    settings = stage.encoder_used()
    assert settings is not None
    given = None if settings.folder is None else files[folder_data(settings.folder)]
    folder = encoder_folder(settings, given, LIGHT)
    if not (folder / "config.json").is_file():
        problem = f"{folder} is no model's folder" if folder.is_dir() else f"no folder {folder}"
        raise InputError([Fault(problem, REMEDY, field=encoder_field(stage))])
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        problem = f"its config.json is of no model that transformers knows: {str(error).splitlines()[0][:160]}"
        raise InputError([Fault(problem, REMEDY, str(folder))]) from error
    if (fault := _other_kind(config, str(folder))) is not None:
        raise InputError([fault])
    try:
        tokenizer = load_encoder_tokenizer(folder)
    except (OSError, ValueError) as error:
        problem = f"its tokenizer cannot be loaded: {str(error).splitlines()[0][:160]}"
        raise InputError([Fault(problem, "give a whole Hugging Face model folder", str(folder))]) from error
    model = without_weights(config)
    from alignment.models.encoders.architecture import longest_text

    bounds = (stage.trained_length(), tokenizer.model_max_length, longest_text(model))
    tokenizer.model_max_length = min(bound for bound in (*bounds, UNBOUNDED) if bound)
    return InspectedEncoder(folder, config, tokenizer, model)


def _other_kind(config: Any, folder: str) -> Fault | None:
    """The fault of a model that is no encoder."""
    from alignment.models.encoders.architecture import is_encoder

    if is_encoder(config):
        return None
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        return Fault(f"{kind} is an encoder with a decoder, not an encoder alone", REMEDY, folder)
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        problem = f"{kind} is a decoder as it is configured, whose first token sees no other"
        return Fault(problem, f"{REMEDY}; a decoder is named as model.base, and by `model`", folder)
    return Fault(f"{kind} is no encoder that can classify a text", REMEDY, folder)
