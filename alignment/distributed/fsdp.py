"""One model over the workers of a stage: each holds a part of every weight, gradient and moment of the optimizer.

FSDP2 (``fully_shard``; Zhao et al. 2023, "PyTorch FSDP"), through accelerate's plugin in TRL's trainers and directly in
our own (PPO): a layer's weights are gathered when it is at work, and its gradients are added up where they belong. The
steps are those of whole models, up to the order of sums; so are the artifacts, which rank 0 writes from what all
workers give it. Left out is what whole models have to do as well: each worker reads the model's file, into its
machine's memory, before it keeps its part on its GPU.
"""

import os
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from peft import PeftModel
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from alignment.errors import StageError, keeping
from alignment.models.device import pick_device
from alignment.models.prefix_sharing import one_call_a_pass
from alignment.stage import StageContext

State = dict[str, torch.Tensor]
VARIABLES = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")  # what accelerate sets, for good


def sharding_arguments(context: StageContext) -> dict[str, Any]:
    """The keyword arguments that any ``TrainingArguments`` takes for it; none where workers hold whole models.

    Checkpoints are whole as well, so that they are read with ``weights_only=True`` and by any number of workers.
    ``bf16`` is off because accelerate would turn the trained weights to float32 and the adapters' gradients to
    bfloat16: :func:`prepare_trainer` narrows the operations alone, as it is without sharding.
    """
    if not context.sharded:
        return {}
    return {"bf16": False, "fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}}


@contextmanager
def sharding(context: StageContext) -> Iterator[None]:
    """Has the trainer that is made, and trains, in it shard its model, where the recipe says so.

    Raises StageError where a recipe wants processors on a machine with GPUs: PyTorch would shard over these.
    """
    if not context.sharded:
        yield
        return
    check_devices(context)
    with _known_on_processors() if _on_processors(context) else nullcontext():
        try:
            yield
        finally:
            for name in VARIABLES:  # the next stage of this process may be another
                os.environ.pop(name, None)


def _on_processors(context: StageContext) -> bool:
    return pick_device(context.run.resources).type == "cpu"


def check_devices(context: StageContext) -> None:
    """Raises StageError where a recipe wants processors on a machine with GPUs: PyTorch would shard over these."""
    if context.sharded and _on_processors(context) and torch.cuda.is_available():
        raise StageError(
            "resources.device is cpu, and PyTorch shards over the GPUs that it finds here: "
            "set CUDA_VISIBLE_DEVICES to nothing, device to cuda, or sharding to none"
        )


@contextmanager
def _known_on_processors() -> Iterator[None]:
    """accelerate takes its plugin on accelerators only, though all that it calls works over gloo."""
    original = AcceleratorState.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        shared = PartialState._shared_state
        if shared.get("distributed_type") == DistributedType.MULTI_CPU and kwargs.get("fsdp_plugin") is not None:
            shared["distributed_type"] = DistributedType.MULTI_GPU  # as of here it says FSDP
        original(self, *args, **kwargs)

    AcceleratorState.__init__ = init
    try:
        yield
    finally:
        AcceleratorState.__init__ = original


def prepare_trainer(trainer: Any, context: StageContext) -> None:
    """What a trainer needs beside its arguments, once it is made and before it trains."""
    if not context.sharded:
        return
    if not trainer.is_fsdp_enabled:
        raise StageError(f"{context.name}: {type(trainer).__name__} would not shard its model")
    model = trainer.model
    one_call_a_pass(model.get_base_model() if isinstance(model, PeftModel) else model)
    if context.run.model.dtype == "bfloat16":
        device = trainer.args.device.type

        def autocast(self: Any, cache_enabled: bool | None = True) -> Any:
            return torch.autocast(device, torch.bfloat16, cache_enabled=cache_enabled)

        trainer.autocast_smart_context_manager = types.MethodType(autocast, trainer)
    # A checkpoint's other files hold all that is needed to go on; this one would gather the weights once more.
    trainer.save_model = lambda *_args, **_kwargs: None


def shard_frozen(model: Any) -> Any:
    """Shards a model that only reads, such as a reference, layer by layer, as accelerate shards the one that trains."""
    model.requires_grad_(False)
    for layer in _layers(model):
        fully_shard(layer)
    fully_shard(model)
    return model


def shard_trained(model: Any) -> None:
    """Shards a model that we train ourselves; its gradients are the sum of all workers', added in float32."""
    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for part in [*_layers(model), model]:
        sharded = fully_shard(part, mp_policy=precision)
        sharded.set_gradient_divide_factor(1.0)  # the mean of all workers' otherwise
        sharded.set_force_sum_reduction_for_comms(True)  # else a factor wants an operation that only NCCL has


def one_pass(model: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(model, *arguments)`` as a forward pass: what of a sharded model is in no layer is whole meanwhile.

    For what reads a model's head, or calls its trunk, without calling the model itself.
    """
    if not isinstance(model, FSDPModule):
        return function(model, *arguments)
    module = cast(Any, model)
    if not hasattr(module, "one_pass"):
        module.one_pass = types.MethodType(lambda self, function, *arguments: function(self, *arguments), module)
        register_fsdp_forward_method(module, "one_pass")
    return module.one_pass(function, *arguments)


def _layers(model: Any) -> list[Any]:
    """The layers that are gathered one at a time."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    # By their bases, too: sharding gives a module another class.
    return [module for module in model.modules() if names & {kind.__name__ for kind in type(module).__mro__}]


def whole_state(model: Any, *, trained_only: bool = False) -> State | None:
    """The whole weights of a sharded model, in rank 0's memory and an empty dict elsewhere; None where none is sharded.

    Every worker has to come here.
    """
    if not isinstance(model, FSDPModule):
        return None
    options = StateDictOptions(
        full_state_dict=True, cpu_offload=True, broadcast_from_rank0=True, ignore_frozen_params=trained_only
    )
    state: dict[str, Any] = dict(get_model_state_dict(cast(torch.nn.Module, model), options=options))
    for copy, source in dict(getattr(model, "all_tied_weights_keys", None) or {}).items():
        if source in state:  # a head that is the embedding comes back as a second one
            state.pop(copy, None)
    return state


def whole_model(model: Any, make: Callable[[], Any], context: StageContext) -> Any:
    """A trained model as one that rank 0 can use alone: itself, or where it is sharded, its weights in one just made.

    Every worker has to come here; what the others get is of no use.
    """
    state = whole_state(model, trained_only=True)
    if state is None or context.rank > 0:
        return model
    whole = make()
    wanted = {name for name, parameter in whole.named_parameters() if parameter.requires_grad}
    unknown = whole.load_state_dict(state, strict=False).unexpected_keys
    if amiss := sorted({*unknown, *(wanted - state.keys())}):
        raise StageError(f"{context.name}: the workers' parts and the model differ in {', '.join(amiss[:3])}")
    return whole


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """A sharded model's weights are whole in every worker for as long as the context lasts: each may call it alone."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    layers = [part for part in _layers(model) if isinstance(part, FSDPModule)]
    for layer in layers:
        layer.set_reshard_after_forward(False, recurse=False)
    for part in parts:
        part.unshard()
    try:
        yield
    except BaseException as error:
        with keeping(error, "giving the gathered weights back"):
            _give_back(model, layers)
        raise
    _give_back(model, layers)


def _give_back(model: Any, layers: list[FSDPModule]) -> None:
    for layer in layers:
        layer.set_reshard_after_forward(True, recurse=False)
    reshard(model)


def reshard(model: Any) -> None:
    """Each worker keeps its part alone of what was gathered, such as a trunk's embedding between two passes."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
