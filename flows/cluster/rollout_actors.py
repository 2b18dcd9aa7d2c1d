"""Rollout workers apart from learners: actors that sample for a policy in training, with the weights they were sent.

Every request names a version and brings the weights' place in Ray's store; a worker that holds another version takes
them first, and says with each answer which version it drew it with. A worker that dies is started again by Ray and
given its request again: an answer depends on the weights, its prompt and its seed alone, so it is the same answer.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignment.distributed.workers import Team
from alignment.durable_files import write_text
from alignment.policy.online.rollout_worker import RolloutWorker, trained
from alignment.records import Sampling
from alignment.rollouts.engine import Groups
from alignment.stage import StageContext, silent
from flows.cluster.ray_errors import answer_of
from flows.cluster.ray_session import actor_options
from flows.cluster.stack_dump import say_where


class ActorEngineFactory:
    """Makes the engine of a stage that has ``number`` rollout workers: what its context's ``rollouts`` is."""

    def __init__(self, number: int, home: Path, environment: Mapping[str, str], context: StageContext) -> None:
        self.number, self.home, self.environment = number, home, dict(environment)
        self.context = replace(context, report=silent)

    def __call__(self, settings: Any) -> "ActorEngine":
        import ray

        worker = ray.remote(**actor_options(self.context.run.resources))(RolloutActor)
        actors = [
            worker.remote(settings, self.context, self.environment, str(self.home), f"rollout-{place}")
            for place in range(self.number)
        ]
        return ActorEngine(actors, self.context.name)


class ActorEngine:
    """A :class:`~alignment.rollouts.distributed_engine.PushedEngine`: each rollout worker draws for some prompts."""

    def __init__(self, actors: Sequence[Any], name: str) -> None:
        self.actors, self.name = tuple(actors), name
        self.version: int | None = None
        self._weights: Any = None

    def push(self, policy: Any, version: int) -> None:
        """What is drawn from now on is drawn with the policy's weights as they are, which are called ``version``."""
        import ray

        if version != self.version:
            weights = {name: parameter.detach().cpu() for name, parameter in trained(policy).items()}
            self._weights, self.version = ray.put(weights), version

    def begin(
        self, prompts: Sequence[Sequence[int]], *, sampling: Sampling, seeds: Sequence[int], per_prompt: int = 1
    ) -> Callable[[], Groups]:
        """Has the workers draw; the result waits for what they drew."""
        if self.version is None:
            raise RuntimeError("no weights were pushed yet")
        asked = []
        for place, actor in enumerate(self.actors):
            team = Team(place, len(self.actors))
            mine, own_seeds = team.mine(prompts), team.mine_of(seeds, len(prompts), per_prompt)
            if mine:
                asked.append(
                    actor.generate.remote(self.version, [self._weights], mine, sampling, own_seeds, per_prompt)
                )
        return lambda: [group for reference in asked for group in answer_of(reference, self.name)]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: Sampling,
        seeds: Sequence[int],
        per_prompt: int = 1,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Groups:
        """See :meth:`alignment.rollouts.engine.Engine.generate`; progress is told once, at the end."""
        groups = self.begin(prompts, sampling=sampling, seeds=seeds, per_prompt=per_prompt)()
        if on_progress is not None:
            on_progress(len(seeds), len(seeds))
        return groups


class RolloutActor:
    """The actor: a rollout worker that takes weights from Ray's store where it holds others than it is asked for."""

    def __init__(self, settings: Any, context: StageContext, environment: dict[str, str], home: str, name: str) -> None:
        os.environ.update(environment)
        say_where(Path(home), name)
        self.settings, self.context = settings, context
        self.usage = Path(home) / "usage" / f"{name}-{os.getpid()}"
        self._worker: RolloutWorker | None = None

    def generate(
        self,
        version: int,
        weights: Sequence[Any],
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        per_prompt: int,
    ) -> Groups:
        """``weights`` holds the reference of those of ``version``: in a list, so that Ray fetches them when needed."""
        import ray
        import torch

        if self._worker is None:  # not in the constructor, whose errors Ray turns into text
            if threads := self.context.run.resources.threads:
                torch.set_num_threads(threads)
            self._worker = RolloutWorker(self.settings, self.context)
        if self._worker.version != version:
            self._worker.load(version, ray.get(weights[0]))
        groups = self._worker.generate(prompts, sampling=sampling, seeds=seeds, per_prompt=per_prompt)
        write_text(self.usage, str(time.process_time()), synced=False)
        return groups
