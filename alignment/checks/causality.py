"""Whether a model's architecture can be a policy: a decoder whose tokens never see what comes after them.

What a configuration's class says is not enough: ``AutoModelForCausalLM`` also loads encoders (BERT and its kin), whose
tokens look both ways unless ``is_decoder`` is set. So a small copy of the architecture is run, where one can be made.
"""

import contextlib
import inspect
import logging
from typing import Any

from alignment.errors import Fault

_log = logging.getLogger(__name__)
TOKENS, CHANGED = (5, 6, 7, 8, 9, 10), 11  # token ids of the tiny pass, and what the last becomes in the second
SMALL = {  # sizes that a copy is given, where its configuration has them
    "vocab_size": 64, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64, "num_experts": 2, "num_local_experts": 2,
    "num_experts_per_tok": 1, "moe_intermediate_size": 16,
}  # fmt: skip
OTHER_HEADS = (
    "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice", "ForMaskedLM",
    "RewardModel",
)  # fmt: skip
OWN = ("vocab_size", "num_hidden_layers")  # the copy that keeps all other sizes, where those above do not fit together
MOST_PARAMETERS = 60_000_000  # of such a copy


def architecture_faults(config: Any, file: str, *, sampled: bool) -> list[Fault]:
    """What stands against sampling from and training a model of this configuration.

    ``sampled`` says that a stage draws answers. ``config`` is a ``PreTrainedConfig``; ``file`` names it.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from alignment.models.families import cache_argument

    remedy = "give a model that AutoModelForCausalLM loads as a decoder, such as a Llama or a Qwen"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return [Fault(f"{config.model_type} is no causal language model", remedy, file)]
    if getattr(config, "is_encoder_decoder", False):
        return [Fault(f"{config.model_type} is an encoder with a decoder, not a decoder alone", remedy, file)]
    if foreign := [name for name in config.architectures or () if name.endswith(OTHER_HEADS)]:
        problem = f"the folder holds a {foreign[0]}, whose weights have no language-model head: it would be random"
        return [Fault(problem, remedy, file)]
    faults = []
    if looks_ahead(config):
        problem = f"{config.model_type} is no causal decoder as it is configured: its tokens see what comes after them"
        faults.append(Fault(problem, remedy, file))
    if sampled and cache_argument(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]) is None:
        faults.append(Fault(f"{config.model_type} keeps no key-value cache, and a stage samples from it", remedy, file))
    return faults


def routes(config: Any) -> bool:
    """Whether models of this configuration compute a loss of the routers of a mixture of experts."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return kind is not None and "output_router_logits" in inspect.signature(kind.forward).parameters


def missing_weights(folder: str) -> list[Fault]:
    """The fault of a folder that lacks weights of the policy that would be loaded from it.

    The model is made on PyTorch's meta device: names and shapes are held against the files' headers, no weight is read.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    from alignment.models.seq2seq.architecture import class_of_folder

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # nothing is loaded
    try:
        kind = class_of_folder(folder)
        _model, loaded = kind.from_pretrained(folder, device_map="meta", output_loading_info=True)
    except Exception as error:  # what a loading that reads no weights trips over is told by the loading itself
        _log.debug("the weights of %s cannot be held against their names: %s", folder, error)
        return []
    finally:
        transformers_logging.set_verbosity(level)
    missing = sorted(loaded["missing_keys"])
    if not missing:
        return []
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    problem = f"it does not hold {missing[0]}{more}, which the model needs: they would be drawn at random"
    what = "a causal language model" if kind is AutoModelForCausalLM else "a whole encoder-decoder"
    return [Fault(problem, f"give the folder of {what}", folder)]


def looks_ahead(config: Any) -> bool:
    """Whether a token's logits change with a later one, by two passes of a tiny copy; False where none can be made."""
    import torch

    for changes in (SMALL, OWN):
        try:
            model = tiny_copy(config, changes=changes)
        except Exception as error:  # sizes of an architecture that do not fit together: each library says so otherwise
            _log.debug("no tiny copy of %s: %s", config.model_type, error)
            continue
        if model is None:
            continue
        try:
            with torch.no_grad(), _own_randomness():
                ids = torch.tensor([list(TOKENS), [*TOKENS[:-1], CHANGED]])
                logits = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        except Exception as error:
            _log.debug("the tiny copy of %s does not run: %s", config.model_type, error)
            continue
        first, second = logits.float()
        return not torch.allclose(first[:-1], second[:-1], atol=1e-4, rtol=1e-3)
    return False


def tiny_copy(config: Any, kind: Any = None, *, changes: Any = tuple(SMALL)) -> Any:
    """A model of the same architecture with random weights, in float32; None where it would be large.

    ``kind`` is the auto class that makes it, by default that of causal language models.
    """
    import torch
    from transformers import AutoModelForCausalLM

    kind = kind or AutoModelForCausalLM
    values = config.to_dict()
    for name in ("quantization_config", "dtype", "torch_dtype", "layer_types", "pad_token_id", "bos_token_id",
                 "eos_token_id", "sep_token_id", "decoder_start_token_id"):  # fmt: skip
        values.pop(name, None)
    small = type(config).from_dict(values)
    text = small.get_text_config()
    text.bos_token_id = text.eos_token_id = None
    padding = getattr(config.get_text_config(), "pad_token_id", None)  # which some count their positions by
    text.pad_token_id = None if padding is None else min(padding, 1)
    for name in changes:
        if hasattr(text, name) and getattr(text, name) is not None:
            setattr(text, name, SMALL[name])
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind.from_config(small).parameters())
    if size > MOST_PARAMETERS:
        return None
    with _own_randomness():
        return kind.from_config(small, dtype=torch.float32)


@contextlib.contextmanager
def _own_randomness() -> Any:
    """Random numbers that are the same each time and that nobody else draws from."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
