"""(IA)³: which layers of a model are scaled, and how many numbers that takes."""

from typing import Any, NamedTuple

from peft import IA3Config, TaskType
from transformers.pytorch_utils import Conv1D

from alignment.data.columns import listed
from alignment.errors import nearest
from alignment.models.families.lora_targets import Target, is_named, lora_targets
from alignment.recipe.stages.adapters import Ia3

KEYS_VALUES = ("k_proj", "v_proj", "key", "value", "query_key_value", "qkv_proj", "c_attn", "Wqkv", "kv_b_proj")
FEEDFORWARD = ("down_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "mlp.c_proj")


class Scaled(NamedTuple):
    """The layers whose outputs are scaled, and those whose inputs are."""

    outputs: list[Target]
    inputs: list[Target]

    @property
    def numbers(self) -> int:
        """Factors that are trained."""
        return sum(one.outputs for one in self.outputs) + sum(one.inputs for one in self.inputs)


def scaled(model: Any, ia3: Ia3) -> Scaled:
    """The layers that an adapter with these settings scales; ``model`` may be on PyTorch's meta device."""
    layers = [target for target in lora_targets(model) if not target.is_parameter]
    inputs = [one for one in layers if is_named(one.name, ia3.feedforward or FEEDFORWARD)]
    chosen = {one.name for one in inputs}
    outputs = [one for one in layers if is_named(one.name, ia3.targets or KEYS_VALUES) and one.name not in chosen]
    return Scaled(outputs, inputs)


def ia3_problem(model: Any, ia3: Ia3) -> tuple[str, str, str] | None:
    """What stands against it: the setting, the problem and what to do; None where nothing does."""
    layers, kind = [target for target in lora_targets(model) if not target.is_parameter], type(model).__name__
    known = sorted({target.name.rpartition(".")[2] for target in layers})
    for setting, ends in (("targets", ia3.targets), ("feedforward", ia3.feedforward)):
        for index, end in enumerate(ends or ()):
            if not any(is_named(target.name, (end,)) for target in layers):
                near = nearest(end, known)
                remedy = (f"did you mean {near}? " if near else "") + f"it has {listed(known)}"
                return f"{setting}.{index}", f"{kind} has no layer {end} that can be scaled", remedy
    if not scaled(model, ia3).outputs:
        problem = f"which layers of {kind} make keys and values is not known"
        return "targets", problem, f"name them; it has {listed(known)}"
    return None


def ia3_config(model: Any, ia3: Ia3, task_type: TaskType) -> IA3Config:
    """PEFT's settings of such an adapter."""
    found = scaled(model, ia3)
    modules = dict(model.named_modules())
    inputs = [one.name for one in found.inputs]
    turned = any(isinstance(modules[one.name], Conv1D) for one in (*found.outputs, *found.inputs))
    return IA3Config(
        target_modules=[*(one.name for one in found.outputs), *inputs],
        feedforward_modules=inputs,
        fan_in_fan_out=turned,
        task_type=task_type,
    )
