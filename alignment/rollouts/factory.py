"""Which engine samples: this process's, the server that the recipe names, or workers apart from this one."""

from typing import Any

from alignment.distributed.workers import Team
from alignment.errors import StageError
from alignment.models.adapters import is_adapter
from alignment.models.families import stop_ids
from alignment.recipe.base import BASE
from alignment.records import Artifact
from alignment.rollouts.distributed_engine import LeadersEngine, SharedEngine
from alignment.rollouts.engine import Engine
from alignment.rollouts.transformers_engine import TransformersEngine
from alignment.stage import StageContext

BATCH = 64  # rows that are sampled together


def local_engine(
    policy: Any, tokenizer: Any, *, batch_size: int = BATCH, share_prefixes: bool = False
) -> TransformersEngine:
    """An engine in this process."""
    stops = stop_ids(policy, tokenizer)
    return TransformersEngine(policy, tokenizer, stop_ids=stops, batch_size=batch_size, share_prefixes=share_prefixes)


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
    settings = context.run.resources.vllm
    if settings is None:
        return local_engine(policy, tokenizer, batch_size=batch_size)
    from alignment.rollouts.vllm_engine import VllmEngine

    base = context.inputs[BASE]
    if artifact is not None and not is_adapter(artifact) and artifact.digest != base.digest:
        problem = f"{artifact.ref()} is whole weights, and the vLLM server holds {base.key}"
        raise StageError(f"{problem}: train it as an adapter (lora), or leave resources.vllm out")

    return VllmEngine(
        settings,
        tokenizer,
        stop_ids=stop_ids(policy, tokenizer),
        base=base,
        folder=context.checkpoints,
        policy=policy if artifact is None else None,
        adapter=artifact if artifact is not None and is_adapter(artifact) else None,
    )


def team_engine(settings: Any, context: StageContext, policy: Any, tokenizer: Any) -> Engine:
    """The engine of a policy in training on all of a stage's workers: each of them gets every answer."""
    team, leads = Team(context.rank, context.workers), context.rank == 0
    if context.rollouts is not None:
        return LeadersEngine(context.rollouts(settings) if leads else None, team)
    if team.workers == 1:
        return build_engine(context, policy, tokenizer)
    if context.run.resources.vllm is not None:  # one of them speaks for all: the adapter is sent once
        return LeadersEngine(build_engine(context, policy, tokenizer) if leads else None, team)
    return SharedEngine(build_engine(context, policy, tokenizer), team, policy)
