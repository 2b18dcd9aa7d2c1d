"""What an environment is, and what a step of one gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class Environment(Protocol):
    """One episode's surroundings. For each episode one is made, with the options of the recipe as keyword arguments.

    It need not be of this class: any with these two methods will do.
    """

    def reset(self, prompt: Mapping[str, Any], seed: int, /) -> None:
        """Begins an episode.

        Args:
            prompt: ``messages`` (a list of ``{"role", "content"}``), ``reference`` (text or None), ``kind`` and
                ``source`` of the prompt.
            seed: of all that the episode draws; the same for each answer to a prompt within a step.
        """
        ...

    def step(self, answer: str, /) -> tuple[str, bool, float]:
        """What came of an answer: the observation that the policy is told, whether the episode is done, and a reward.

        Where it is done, the observation is told to nobody but the report.
        """
        ...


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave, checked."""

    observation: str
    done: bool
    reward: float
