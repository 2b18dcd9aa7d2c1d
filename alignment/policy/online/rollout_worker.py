"""A worker that samples for a policy in training, apart from it: it holds a copy and is sent the weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from alignment.errors import StageError
from alignment.models.adapters import adapt, is_adapter
from alignment.models.load import load_policy
from alignment.recipe.base import BASE
from alignment.recipe.stages.online import OnlineStage
from alignment.records import Sampling
from alignment.rollouts.engine import Groups
from alignment.rollouts.factory import local_engine
from alignment.stage import StageContext


def trained(policy: Any) -> dict[str, torch.nn.Parameter]:
    """The weights that training changes, by name: all that a worker needs beside what it loads from artifacts."""
    return {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}


class RolloutWorker:
    """Samples with the weights that it was last given. ``version`` is theirs, None before the first."""

    def __init__(self, settings: OnlineStage, context: StageContext) -> None:
        start, base = context.inputs[settings.model], context.inputs[BASE]
        policy, tokenizer = load_policy(start, base, context.run, trainable=True)
        if not is_adapter(start):
            policy = adapt(policy, settings.trained_part(), tokenizer)
        self.policy = policy.eval()
        self.version: int | None = None
        self.engine = local_engine(policy, tokenizer)

    @torch.no_grad()
    def load(self, version: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Takes over a version's weights. Raises StageError where they are another policy's."""
        own = trained(self.policy)
        if own.keys() != weights.keys():
            raise StageError("the weights that were pushed are not those of the policy that this worker samples from")
        self.version = None  # a death in between leaves no mixture with a version's name
        for name, parameter in own.items():
            parameter.copy_(weights[name])
        self.version = version

    def generate(
        self, prompts: Sequence[Sequence[int]], *, sampling: Sampling, seeds: Sequence[int], per_prompt: int = 1
    ) -> Groups:
        """As an engine does; every completion carries the version it was drawn with."""
        groups = self.engine.generate(prompts, sampling=sampling, seeds=seeds, per_prompt=per_prompt)
        return [[replace(completion, version=self.version) for completion in group] for group in groups]
