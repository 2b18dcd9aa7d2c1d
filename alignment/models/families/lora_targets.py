"""What an adapter "on every linear layer" attaches to, family by family.

Every linear layer of the text decoder, experts included, but for the head, the routers, and what reads pictures or
sound. Experts are one parameter with three dimensions in transformers, and PEFT adapts such a parameter by its name. In
a mixture of experts it also reads the names of dense and shared layers as those of experts, as they were before
transformers 5; so there these layers are named by their parameter, too.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignment.data.columns import listed
from alignment.errors import nearest
from alignment.models.encoders.architecture import head_parts
from alignment.models.seq2seq.architecture import policy_class
from alignment.recipe.base import Lora

LINEAR = (nn.Linear, Conv1D)
ROUTERS = {"router", "gate", "shared_expert_gate"}
READ_AS_EXPERTS = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}  # by PEFT, in a mixture of experts
STATE_SPACE = {"A_log", "D"}  # what Mamba's mixers hold; their kernels read all weights but the first's by themselves


class Target(NamedTuple):
    """A weight that is adapted: its module's (or its own) name, its size as a product, and how many there are of it.

    ``used`` of its ``matrices`` are multiplied with each token.
    """

    name: str
    inputs: int
    outputs: int
    is_parameter: bool = False
    matrices: int = 1
    used: int = 1


def lora_targets(model: Any) -> list[Target]:
    """The weights that an adapter on every linear layer of ``model`` has; it may be on PyTorch's meta device."""
    decoder = text_decoder(model)
    heads = {id(head) for head in (_output_embeddings(model), getattr(model, "score", None)) if head is not None}
    if isinstance(model, PreTrainedModel):
        heads |= {id(layer) for part in head_parts(model).values() for layer in part.modules()}
    experts = list(_experts(model, decoder))
    return [*_linears(model, decoder, heads, mixture=bool(experts)), *experts]


class AdapterProblem(NamedTuple):
    """Why a model cannot have an adapter: the setting of :class:`alignment.recipe.base.Lora`, and what to do."""

    setting: str
    problem: str
    remedy: str


def chosen_targets(model: Any, lora: Lora) -> list[Target]:
    """The weights that an adapter with these settings has."""
    targets = lora_targets(model)
    return targets if lora.targets is None else [target for target in targets if is_named(target.name, lora.targets)]


def is_named(name: str, ends: tuple[str, ...]) -> bool:
    """Whether the name of a layer, or of its weight, ends with one of the names, whole parts compared."""
    module = name.removesuffix(".weight")
    return any(module == end or module.endswith(f".{end}") for end in ends)


def adapter_problem(model: Any, lora: Lora) -> AdapterProblem | None:
    """What stands against such an adapter on a model, which may be on PyTorch's meta device."""
    targets, kind = lora_targets(model), type(model).__name__
    for index, end in enumerate(lora.targets or ()):
        if not any(is_named(target.name, (end,)) for target in targets):
            known = sorted({target.name.removesuffix(".weight").rpartition(".")[2] for target in targets})
            near = nearest(end, known)
            remedy = (f"did you mean {near}? " if near else "") + f"it has {listed(known)}"
            return AdapterProblem(f"targets.{index}", f"{kind} has no layer {end} that is adapted", remedy)
    chosen = chosen_targets(model, lora)
    if lora.init != "zero" and (least := min(min(one.inputs, one.outputs) for one in chosen)) < lora.rank:
        problem = f"{lora.init} starts at singular values or rows, of which a layer of {kind} has {least}"
        return AdapterProblem("init", problem, f"set rank to {least} or less, or init to zero")
    if not any(target.is_parameter for target in chosen):
        return None
    if lora.init != "zero":
        problem = f"{lora.init}, and the weights of the experts of {kind} are stacked"
        return AdapterProblem("init", problem, "set it to zero, or name targets without them")
    if lora.dropout:
        return AdapterProblem(
            "dropout", f"{lora.dropout:g}, and adapters on the experts of {kind} have none", "set it to 0"
        )
    if lora.dora:
        remedy = "set it to false, or name targets without them"
        return AdapterProblem("dora", f"adapters on the experts of {kind} have no lengths of their own", remedy)
    return None


def without_weights(config: Any) -> Any:
    """The policy of a configuration, on PyTorch's meta device. Raises ValueError where it is of none."""
    with init_empty_weights():
        return policy_class(config).from_config(config)


def text_decoder(model: Any) -> Any:
    """The part of a model that reads and writes text; the model itself where it does nothing else."""
    if not isinstance(model, PreTrainedModel) or model.config.get_text_config() is model.config:
        return model
    kind = type(model.config.get_text_config())
    parts = (module for module in model.modules() if isinstance(module, PreTrainedModel))
    return next((part for part in parts if isinstance(part.config, kind)), model)


def is_router(name: str, module: Any) -> bool:
    """Whether a module chooses among experts."""
    return name.rpartition(".")[2] in ROUTERS or "router" in type(module).__name__.lower()


def _linears(model: Any, decoder: Any, heads: set[int], *, mixture: bool) -> Iterator[Target]:
    inside = {id(module) for module in decoder.modules()}
    parents = dict(model.named_modules())
    for name, module in parents.items():
        if not isinstance(module, LINEAR) or id(module) not in inside or id(module) in heads:
            continue
        parent = parents[name.rpartition(".")[0]]
        if is_router(name, module) or any("router" in part.lower() for part in name.split(".")):
            continue
        if all(hasattr(parent, part) for part in STATE_SPACE) and not name.endswith("in_proj"):
            continue
        inputs, outputs = linear_shape(module)
        by_parameter = mixture and name.rpartition(".")[2] in READ_AS_EXPERTS
        yield Target(f"{name}.weight" if by_parameter else name, inputs, outputs, by_parameter)


def _experts(model: Any, decoder: Any) -> Iterator[Target]:
    inside = {id(module) for module in decoder.modules()}
    config = model.config.get_text_config() if isinstance(model, PreTrainedModel) else None
    chosen = next(
        (value for name in ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k")
         if (value := getattr(config, name, None)) is not None), None,
    )  # fmt: skip
    for name, module in model.named_modules():
        if "Experts" not in type(module).__name__ or id(module) not in inside:
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3:
                count, outputs, inputs = parameter.shape
                if getattr(module, "is_transposed", False):
                    inputs, outputs = outputs, inputs
                used = min(count, chosen or count)
                yield Target(f"{name}.{own}", inputs, outputs, True, count, used)


def linear_shape(module: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer; GPT-2's convolutions of width 1 hold their weight the other way round."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    return module.in_features, module.out_features


def _output_embeddings(model: Any) -> Any:
    return model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
