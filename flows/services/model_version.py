"""A registered version, loaded for generation."""

from pathlib import Path
from typing import Any

from alignment.errors import Fault, InputError
from alignment.workspace import Workspace
from flows.services.servers import quiet_environment


def load_version(reference: str, workspace: Workspace) -> tuple[Any, Any]:
    """The model and tokenizer of a registered version (``policy@champion``, ``policy/3``) or of a model's folder.

    Raises InputError where it cannot be loaded, NotFiniteError where a weight is no finite number.
    """
    quiet_environment(workspace)
    import torch
    from transformers import AutoModelForCausalLM

    from alignment.chat import load_tokenizer
    from alignment.checks.model import embedding_faults
    from alignment.models.weights import require_finite, weight_faults
    from alignment.precision import natural_precision

    folder = Path(reference)
    if not folder.is_dir():
        from alignment.registry import find

        folder = Path(find(workspace, reference).folder)
    merged = folder / "merged"
    source = merged if merged.is_dir() else folder
    if faults := weight_faults(source):
        raise InputError(faults)
    try:
        model = AutoModelForCausalLM.from_pretrained(str(source), dtype=getattr(torch, natural_precision("auto")))
        tokenizer = load_tokenizer(folder)
    except InputError:
        raise
    except Exception as error:  # each library behind it raises its own kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        problem = f"no model can be loaded from {source}: {reason}"
        remedy = "name a registered version or a Hugging Face folder"
        raise InputError([Fault(problem, remedy, field="MODEL")]) from error
    require_finite(model.named_parameters(), reference)
    if faults := embedding_faults(tokenizer, source, model.config, str(source)):
        raise InputError(faults)
    return model.eval(), tokenizer
