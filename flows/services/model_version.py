"""A registered version, loaded for generation."""

from pathlib import Path
from typing import Any

from alignment.errors import Fault, InputError
from alignment.workspace import Workspace
from flows.services.servers import quiet_environment


def load_version(reference: str, workspace: Workspace) -> tuple[Any, Any]:
    """The model and tokenizer of a registered version (``policy@champion``, ``policy/3``) or of a model's folder."""
    quiet_environment(workspace)
    import torch
    from transformers import AutoModelForCausalLM

    from alignment.chat import load_tokenizer
    from alignment.precision import natural_precision

    folder = Path(reference)
    if not folder.is_dir():
        from alignment.registry import find

        folder = Path(find(workspace, reference).folder)
    merged = folder / "merged"
    source = merged if merged.is_dir() else folder
    try:
        model = AutoModelForCausalLM.from_pretrained(str(source), dtype=getattr(torch, natural_precision("auto")))
    except (OSError, ValueError) as error:
        problem = f"no model can be loaded from {source}: {str(error).splitlines()[0]}"
        remedy = "name a registered version or a Hugging Face folder"
        raise InputError([Fault(problem, remedy, field="MODEL")]) from error
    return model.eval(), load_tokenizer(folder)
