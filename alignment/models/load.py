"""Loading models from artifacts, and saving them into new ones.

A model artifact is a Hugging Face folder: whole weights, or a PEFT adapter. Every adapter of a run is relative to the
run's *base* model, however many stages trained it in turn, so adapter and base cannot be mixed up: its
``adapter_config.json`` names the base as the recipe does, and the base's digest stands in ``base.json``.
"""

import json
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from alignment.chat import load_tokenizer
from alignment.durable_files import write_text
from alignment.errors import StageError
from alignment.models.adapter_kinds.soft_prompt import written_config
from alignment.models.adapters import check_base, is_adapter, load_adapter, train_in_float32
from alignment.models.device import pick_device
from alignment.models.quantised import (
    in_plain_numbers,
    keep_gradients,
    load_weights,
    quantisation,
    quantise_on_loading,
)
from alignment.models.weights import require_finite
from alignment.recipe.run_settings import RunSettings
from alignment.records import Artifact

disable_progress_bar()  # of loading and writing weights: a stage says where it stands by itself
Policy: TypeAlias = PreTrainedModel | PeftModel


@torch.inference_mode(False)  # weights are to be of use whoever asks for them first
def load_policy(
    artifact: Artifact,
    base: Artifact,
    run: RunSettings,
    *,
    trainable: bool = False,
    placed: bool = True,
    masters: bool = False,
    plain: bool = False,
) -> tuple[Policy, PreTrainedTokenizerBase]:
    """A policy and its tokenizer, in the recipe's dtype, in evaluation mode unless ``trainable``.

    Args:
        base: what an adapter applies to.
        placed: on its device; else the model stays in main memory, as one does that is to be sharded.
        masters: in float32 whatever the recipe's dtype, for a training of all weights. A bfloat16 weight has 8 bits,
            and an update of less than 1/256 of it would be lost.
        plain: in plain numbers, those that a quantised base stands for: what an adapter is merged into.

    Raises:
        StageError: the adapter was made on another base, the model has weights that its folder does not hold, quantised
            weights are to be trained, or what reads them is not installed.
        NotFiniteError: a weight is NaN or infinite.
    """
    adapter = is_adapter(artifact)
    if adapter:
        check_base(artifact, base, run.model.quantise)
    source = base if adapter else artifact
    dtype = torch.float32 if masters else getattr(torch, run.model.dtype)
    if masters and (method := quantisation(Path(source.path))) is not None:
        raise StageError(f"{source.ref()} is quantised ({method}), and integers cannot be trained: set lora")
    scheme = run.model.quantise if source.digest == base.digest else None
    if scheme is not None and trainable and not adapter and masters:
        raise StageError(f"{source.ref()} is held in {scheme}, and a quantised base cannot train all weights: set lora")
    device = pick_device(run.resources) if placed else None
    if scheme is None:
        model = load_weights(Path(source.path), dtype, device)
    else:
        model = quantise_on_loading(Path(source.path), scheme, dtype, device)
    if plain:
        model = in_plain_numbers(model, dtype)
    keep_gradients(model)
    attend(model, run.model.attention)
    hide_router_scores(model.config)
    if adapter:
        model = load_adapter(model, artifact.path, trainable=trainable)
        model = train_in_float32(model if device is None else model.to(device))
    require_finite(model.named_parameters(), str(artifact.ref()))
    return model.train(trainable), policy_tokenizer(artifact, base, run)


def attend(model: Any, attention: str | None) -> None:
    """Has a model attend as the recipe says. Raises StageError where its class, or this machine, cannot."""
    if attention is None:
        return
    try:
        model.set_attn_implementation(attention)
        taken = model.config.get_text_config()._attn_implementation
    except (ValueError, ImportError, RuntimeError) as error:
        raise StageError(f"model.attention is {attention}, and {type(model).__name__}: {error}") from error
    if taken != attention:
        raise StageError(f"model.attention is {attention}, which {type(model).__name__} does not compute")


def hide_router_scores(config: Any) -> None:
    """Has a mixture of experts give its routers' scores to who asks, and not at every call, as one may be saved that
    was trained with their loss."""
    text = config.get_text_config()
    if getattr(text, "output_router_logits", False):
        text.output_router_logits = False


def policy_tokenizer(artifact: Artifact, base: Artifact, run: RunSettings) -> PreTrainedTokenizerBase:
    """A policy's tokenizer without the policy."""
    return load_tokenizer(artifact.path, run.model.chat_template if artifact.name == base.name else None)


def save_policy(
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    base: Artifact | None,
    output: Path,
    *,
    state: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a policy (the adapter alone, where it is one) and its tokenizer as safetensors.

    Args:
        base: what an adapter applies to; None: whole weights, which need none.
        state: its whole weights where the model holds only parts of them (:mod:`alignment.distributed.fsdp`).
        dtype: the format in which whole weights are written; None: the model's own. Adapters keep theirs.

    Raises:
        NotFiniteError: a weight is NaN or infinite; nothing is written.
    """
    require_finite(model.named_parameters() if state is None else state.items(), "the trained policy")
    hide_router_scores(model.config)  # a trainer that adds their loss turns them on
    if isinstance(model, PeftModel):
        assert base is not None
        config = model.peft_config["default"]
        config.base_model_name_or_path = base.key
        for targets in ("target_modules", "target_parameters", "feedforward_modules"):
            if isinstance(
                names := getattr(config, targets, None), set
            ):  # in the order of this process's hashes otherwise
                setattr(config, targets, sorted(names))
        # Embeddings are never trained; asked to find out by itself, PEFT would look for the base on the hub.
        model.save_pretrained(output, state_dict=state, selected_adapters=["default"], save_embedding_layers=False)
        if (written := written_config(config)) is not config:
            written.save_pretrained(output)
        (output / "README.md").unlink(missing_ok=True)  # PEFT's empty card; the registry writes a true one
        made_on = {"base": base.key, "digest": base.digest}
        if (scheme := _scheme(model)) is not None:
            made_on["quantise"] = scheme
        write_text(output / "base.json", json.dumps(made_on, indent=1) + "\n")
    elif dtype is None or dtype == model.dtype:
        model.save_pretrained(output, state_dict=state)
    else:
        _save_narrowed(model, output, untied(model, model.state_dict()) if state is None else state, dtype)
    tokenizer.save_pretrained(output)


def _scheme(model: PeftModel) -> str | None:
    """What the base below an adapter was quantised to on loading (``model.quantise``); None for one that was so."""
    inner = model.get_base_model()
    if quantisation(Path(inner.name_or_path)) is not None or not getattr(inner, "is_quantized", False):
        return None
    return "nf4" if getattr(inner, "is_loaded_in_4bit", False) else "int8"


def untied(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A model's weights without those that are others of them under a second name, such as a head's."""
    copies = dict(getattr(model, "all_tied_weights_keys", None) or {})
    return {name: weight for name, weight in state.items() if copies.get(name) not in state}


def _save_narrowed(model: PreTrainedModel, output: Path, state: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    narrowed = {name: weight.to(dtype) if weight.is_floating_point() else weight for name, weight in state.items()}
    model.save_pretrained(output, state_dict=narrowed)
    config = json.loads((output / "config.json").read_text("utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")  # it says what the model in memory is in
    write_text(output / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
