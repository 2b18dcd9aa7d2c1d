"""A registered version, loaded for generation."""

import json
from pathlib import Path
from typing import Any

from alignment.errors import Fault, InputError
from alignment.registry.files import ADAPTER_FILE
from alignment.workspace import Workspace
from flows.services.servers import quiet_environment


def load_version(reference: str, workspace: Workspace, *, plain: bool = False) -> tuple[Any, Any]:
    """The model and tokenizer of a registered version (``policy@champion``, ``policy/3``) or of a model's folder.

    ``plain`` turns a base that was quantised for an adapter back into the numbers that its bits stand for, into which
    the adapter can be merged.

    Raises InputError where it cannot be loaded, NotFiniteError where a weight is no finite number.
    """
    quiet_environment(workspace)
    import torch

    from alignment.chat import load_tokenizer
    from alignment.checks.model import embedding_faults
    from alignment.models.quantised import in_plain_numbers, load_weights, quantise_on_loading
    from alignment.models.weights import require_finite, weight_faults
    from alignment.precision import natural_precision
    from alignment.registry.outside_models import base_of

    folder = version_folder(reference, workspace)
    merged = folder / "merged"
    source = merged if merged.is_dir() else folder
    adapter = (source / ADAPTER_FILE).exists()
    base = base_of(source, workspace) if adapter else str(source)
    if faults := [*weight_faults(source), *(weight_faults(Path(base)) if adapter and Path(base).is_dir() else [])]:
        raise InputError(faults)
    try:
        dtype = getattr(torch, natural_precision("auto"))
        scheme = _scheme_of(source) if adapter else None
        model = (
            load_weights(Path(base), dtype, None)
            if scheme is None
            else quantise_on_loading(Path(base), scheme, dtype, None)
        )
        if plain and scheme is not None:
            model = in_plain_numbers(model, dtype)
        if adapter:
            from alignment.models.adapters import load_adapter

            model = load_adapter(model, str(source))
        tokenizer = load_tokenizer(folder)
    except InputError:
        raise
    except Exception as error:  # each library behind it raises its own kind
        reason = (str(error) or type(error).__name__).splitlines()[0]
        problem = f"no model can be loaded from {source}: {reason}"
        remedy = "name a registered version or a Hugging Face folder"
        raise InputError([Fault(problem, remedy, field="MODEL")]) from error
    require_finite(model.named_parameters(), reference)
    if faults := embedding_faults(tokenizer, Path(base), model.config, base):
        raise InputError(faults)
    return model.eval(), tokenizer


def require_decoder(reference: str, workspace: Workspace, doing: str, *, field: str | None = "MODEL") -> None:
    """Raises InputError where a version is an encoder-decoder (T5, BART), which cannot be what ``doing`` says."""
    from alignment.models.seq2seq.architecture import holds_encoder_decoder

    folder = version_folder(reference, workspace)
    if holds_encoder_decoder(folder / "merged" if (folder / "merged").is_dir() else folder):
        problem = f"{reference} is an encoder with a decoder, which cannot be {doing}"
        raise InputError([Fault(problem, "`rlhf generate` asks it", field=field)])


def export_plain(reference: str, workspace: Workspace, target: Path) -> None:
    """Writes a version into a folder as whole weights in plain numbers, adapter merged, with its tokenizer.

    Raises InputError as :func:`load_version`, and NotFiniteError where what is finite apart overflows together.
    """
    model, tokenizer = load_version(reference, workspace, plain=True)
    from peft import PeftModel

    from alignment.models.weights import require_finite

    merged = model.merge_and_unload() if isinstance(model, PeftModel) else model
    require_finite(merged.named_parameters(), f"{reference}, merged,")
    if hasattr(merged.config, "quantization_config"):
        del merged.config.quantization_config  # of a GGUF file or a base that was unpacked
    merged.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _scheme_of(adapter: Path) -> str | None:
    """The bits of the base that an adapter was trained on (``model.quantise``)."""
    record = adapter / "base.json"
    return json.loads(record.read_text("utf-8")).get("quantise") if record.exists() else None


def version_folder(reference: str, workspace: Workspace) -> Path:
    """The folder of a registered version, or the model's folder that ``reference`` is. Raises InputError."""
    folder = Path(reference)
    if folder.is_dir():
        return folder
    from alignment.registry import find

    return Path(find(workspace, reference).folder)
