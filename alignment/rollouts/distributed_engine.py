"""One engine for several workers that train together: all of them get all answers, whoever drew them."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from alignment.distributed.fsdp import gathered
from alignment.distributed.workers import Team
from alignment.records import Sampling
from alignment.rollouts.engine import Engine, Groups


@runtime_checkable
class PushedEngine(Engine, Protocol):
    """An engine whose weights are elsewhere: they have to be pushed there, and each completion says which it is of."""

    def push(self, policy: Any, version: int) -> None:
        """What is drawn from now on is drawn with the policy's weights as they are, which are called ``version``."""
        ...

    def begin(
        self, prompts: Sequence[Sequence[int]], *, sampling: Sampling, seeds: Sequence[int], per_prompt: int = 1
    ) -> Callable[[], Groups]:
        """Begins to draw; the result waits for the completions, which :meth:`Engine.generate` would give."""
        ...


class SharedEngine:
    """Every worker of a team draws for some of the prompts with its own engine, and they tell one another.

    A ``policy`` of which each holds a part is whole in all of them meanwhile.
    """

    def __init__(self, engine: Engine, team: Team, policy: Any) -> None:
        self.engine, self.team, self.policy = engine, team, policy

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
        mine, own_seeds = self.team.mine(prompts), self.team.mine_of(seeds, len(prompts), per_prompt)
        drawn: Groups = []
        with gathered(self.policy):  # every worker comes here, with or without prompts of its own
            if mine:
                drawn = self.engine.generate(mine, sampling=sampling, seeds=own_seeds, per_prompt=per_prompt)
        groups = self.team.gather(drawn)
        if on_progress is not None:
            on_progress(len(seeds), len(seeds))
        return groups


class LeadersEngine:
    """The first worker of a team has all of it drawn elsewhere, and tells the others. ``engine`` is None in those."""

    def __init__(self, engine: Any | None, team: Team) -> None:
        self.engine, self.team = engine, team
        self._version: int | None = None

    def push(self, policy: Any, version: int) -> None:
        """See :meth:`PushedEngine.push`; every worker of the team has to come here, with its part of the policy."""
        if version == self._version:
            return
        with gathered(policy):
            if self.engine is not None and isinstance(self.engine, PushedEngine):
                self.engine.push(policy, version)
        self._version = version

    def begin(
        self, prompts: Sequence[Sequence[int]], *, sampling: Sampling, seeds: Sequence[int], per_prompt: int = 1
    ) -> Callable[[], Groups]:
        """See :meth:`PushedEngine.begin`; every worker of the team has to ask for the result."""
        options: dict[str, Any] = {"sampling": sampling, "seeds": seeds, "per_prompt": per_prompt}
        begun = None if self.engine is None else self.engine.begin(prompts, **options)
        return lambda: self.team.gather([] if begun is None else begun())

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: Sampling,
        seeds: Sequence[int],
        per_prompt: int = 1,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Groups:
        """See :meth:`alignment.rollouts.engine.Engine.generate`."""
        options: dict[str, Any] = {"sampling": sampling, "seeds": seeds, "per_prompt": per_prompt}
        drawn = [] if self.engine is None else self.engine.generate(prompts, on_progress=on_progress, **options)
        return self.team.gather(drawn)
