"""Which engine samples: this process's, or the server that the recipe names."""

from typing import Any

from alignment.faults import StageError
from alignment.models.loading import is_adapter, stop_ids
from alignment.recipe_base import BASE
from alignment.records import Artifact
from alignment.rollouts.engine import Engine
from alignment.rollouts.transformers_engine import TransformersEngine
from alignment.stage import StageContext

BATCH = 64  # rows that are sampled together


def build_engine(
    context: StageContext,
    policy: Any,
    tokenizer: Any,
    *,
    batch_size: int = BATCH,
    artifact: Artifact | None = None,
) -> Engine:
    """The engine of a stage. ``artifact`` is what ``policy`` was loaded from, where it will not change any more.

    Raises StageError where the recipe names a server that is not there.
    """
    settings, stops = context.recipe.resources.vllm, stop_ids(policy, tokenizer)
    if settings is None:
        return TransformersEngine(policy, tokenizer, stop_ids=stops, batch_size=batch_size)
    from alignment.rollouts.vllm_engine import VllmEngine

    base = context.inputs[BASE]
    if artifact is not None and not is_adapter(artifact) and artifact.digest != base.digest:
        problem = f"{artifact.ref()} is whole weights, and the vLLM server holds {base.key}"
        raise StageError(f"{problem}: train it as an adapter (lora), or leave resources.vllm out")

    return VllmEngine(
        settings,
        tokenizer,
        stop_ids=stops,
        base=base,
        folder=context.checkpoints,
        policy=policy if artifact is None else None,
        adapter=artifact if artifact is not None and is_adapter(artifact) else None,
    )
