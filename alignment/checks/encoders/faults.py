"""Everything wrong with an encoder that can be known before its weights are read."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignment.checks.adapters.kinds import part_problem
from alignment.checks.causality import TOKENS, tiny_copy
from alignment.checks.encoders.inspect import REMEDY, encoder_field, inspect_encoder
from alignment.checks.model import embedding_faults
from alignment.errors import Fault, InputError
from alignment.models.weights import weight_faults
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.spec import StageSettings

_log = logging.getLogger(__name__)


def encoder_faults(recipe: Recipe, files: Mapping[str, Path]) -> list[Fault]:
    """The faults of the encoders that stages start from: their files, kind, tokenizer, and what is trained of them."""
    faults: list[Fault] = []
    for name, stage in recipe.stages.items():
        if stage.encoder_used() is not None:
            faults += _faults(f"stages.{name}", stage, files)
    return faults


def _faults(at: str, stage: StageSettings, files: Mapping[str, Path]) -> Iterator[Fault]:
    field = f"{at}.{encoder_field(stage)}"
    try:
        found = inspect_encoder(stage, files)
    except InputError as error:
        yield from (fault if fault.file else replace(fault, field=field) for fault in error.faults)
        return
    settings = stage.encoder_used()
    if settings is not None and settings.folder is not None:  # of a hub's the weights are not here yet
        if broken := weight_faults(found.folder):
            yield from broken
            return
        yield from _missing(found.folder)
    yield from embedding_faults(found.tokenizer, found.folder, found.config, str(found.folder))
    if (problem := _pass_problem(found.config)) is not None:
        yield Fault(problem, REMEDY, str(found.folder))
    part = stage.trained_part()
    if part is not None and (trouble := part_problem(found.model, part)) is not None:
        setting, words, remedy = trouble
        yield Fault(words, remedy, field=f"{at}.{setting}")


def _missing(folder: Path) -> Iterator[Fault]:
    """The fault of a folder without weights of the encoder itself; those of its head may be new."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging as transformers_logging

    from alignment.models.encoders.model import missing_weights

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # nothing is loaded
    try:
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, ignore_mismatched_sizes=True, device_map="meta", output_loading_info=True
        )
    except Exception as error:  # what a loading that reads no weights trips over is told by the loading itself
        _log.debug("the weights of %s cannot be held against their names: %s", folder, error)
        return
    finally:
        transformers_logging.set_verbosity(level)
    if missing := missing_weights(model, loaded["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        problem = f"it does not hold {missing[0]}{more}, which the encoder needs: they would be drawn at random"
        yield Fault(problem, "give the folder of a whole encoder", str(folder))


def _pass_problem(config: Any) -> str | None:
    """What two passes of a tiny copy show: a score that is no number, or that does not see the text's last token."""
    import torch
    from transformers import AutoModelForSequenceClassification

    changed = type(config).from_dict(config.to_dict())
    changed.num_labels = 1
    try:
        model = tiny_copy(changed, AutoModelForSequenceClassification)
        if model is None:
            return None
        ids = torch.tensor([list(TOKENS), [*TOKENS[:-1], TOKENS[-1] + 1]])
        with torch.no_grad():
            first, second = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
    except Exception as error:  # sizes of an architecture that do not fit together: each library says so otherwise
        _log.debug("the tiny copy of %s does not run: %s", config.model_type, error)
        return None
    if first.shape != (1,) or not torch.isfinite(first).all():
        return f"a {config.model_type} gives no single score"
    if torch.equal(first, second):
        return f"the score of a {config.model_type} as it is configured does not see the last token of a text"
    return None
