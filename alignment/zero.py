"""What DeepSpeed's ZeRO (Rajbhandari et al. 2020) needs beside :mod:`alignment.sharding`, where a recipe says so.

``zero2`` divides gradients and the optimizer's moments among the workers, ``zero3`` the weights as well. DeepSpeed is
an extra (``pip install 'rlhf-flows[deepspeed]'``) and imported here alone. Its checkpoints, unlike all others here, are
read by unpickling: a stage reads none but its own.
"""

import importlib.util
from typing import Any

import torch
from peft import PeftModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from alignment.faults import StageError
from alignment.stage import StageContext

STAGES = {"zero2": 2, "zero3": 3}


def zero_arguments(context: StageContext) -> dict[str, Any]:
    """The keyword arguments that any ``TrainingArguments`` takes for it.

    Weights in bfloat16 get float32 masters, adapters among them. Raises StageError where DeepSpeed is not installed.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise StageError(
            f"resources.sharding is {context.recipe.resources.sharding}, and DeepSpeed is not installed here: "
            "pip install 'rlhf-flows[deepspeed]'"
        )
    import deepspeed.ops

    # On processors it would compile a kernel of its own for messages, which only inference uses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    stage = STAGES[context.recipe.resources.sharding]
    buckets = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
    config = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": stage} | (dict.fromkeys(buckets, "auto") if stage == 3 else {}),
    }
    return {"deepspeed": config, "use_cpu": False}  # accelerate looks for DeepSpeed only then; without GPUs it is True


def whole_zero_state(model: Any) -> dict[str, torch.Tensor] | None:
    """All trained weights of a model that DeepSpeed trained, from their masters; None where it did not.

    Every worker has to come here. Rank 0 gets them, in main memory, and the others an empty dict.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not any(hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping") for parameter in trained.values()):
        return None
    from deepspeed.utils import safe_get_full_fp32_param

    unset_hf_deepspeed_config()  # models that are loaded from here on are whole
    dtype = torch.float32 if isinstance(model, PeftModel) else model.dtype
    state = {}
    for name, parameter in trained.items():
        whole = safe_get_full_fp32_param(parameter).detach()
        if torch.distributed.get_rank() == 0:
            state[name] = whole.to("cpu", dtype, copy=True)
    return state
