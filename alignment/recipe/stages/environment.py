"""The settings of an environment: what answers a policy, turn by turn, until an episode ends.

    environment: {kind: calculator}
    environment: {kind: python, class_path: "maze.py:Maze", max_turns: 8}

An episode begins with a prompt. The policy answers, the environment is told the answer and gives back an observation,
whether the episode is done, and a reward; then the policy answers again. ``sampling.max_new_tokens`` bounds one answer.
"""

from importlib import metadata
from typing import Annotated, Any, Literal

from pydantic import Field

from alignment.recipe.base import Count, Positive, Settings
from alignment.recipe.import_path import attribute_of
from alignment.recipe.rewards.components import RewardList
from alignment.recipe.rewards.settings import reward_name
from alignment.records import Sampling

ENVIRONMENT = "environment"  # the name of its reward's metric


class EnvironmentSettings(Settings):
    """What all environments have: bounds, and how what comes back is told to the policy."""

    max_turns: Count = 4
    """Answers of the policy in an episode, after which it counts as cut off."""
    max_tokens: Count = 512
    """Tokens of an episode after its prompt, answers and observations together; where no more is left it counts as cut
    off."""
    role: Literal["tool", "user"] = "tool"
    """The role in which observations are told. `user`: for models whose chat template knows no tools."""
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """Weight of the environment's reward, summed over an episode, in the sum of the rewards. 0: it is only measured."""
    seconds: Positive = 10.0
    """Time limit for one step in seconds, after which the stage ends."""

    def class_used(self) -> str | None:
        """The user's class, as ``file.py:name`` or ``package.module:name``; None for one that is shipped."""
        return None

    def library(self) -> str | None:
        """The distribution, beyond those that are always installed, whose version decides what it does."""
        return None

    def compares(self) -> bool:
        """Whether its reward compares with the prompt's reference."""
        return False

    def counted(self) -> dict[str, Any]:
        """What a cache key counts beside the settings: the version of its library, where it has one."""
        library = self.library()
        try:
            return {} if library is None else {"library": metadata.version(library)}
        except metadata.PackageNotFoundError:
            return {}


class CalculatorEnvironment(EnvironmentSettings):
    """A calculator that the policy calls with
    ``<tool_call>{"name": "calculator", "arguments": {"expression": "12 * 7"}}</tool_call>``.

    The observation is the result, exact where it is a whole number, or what is wrong with the call. An answer without a
    call ends the episode, with reward 1 where its last number is the prompt's reference, else 0.
    """

    kind: Literal["calculator"]
    """A calculator."""

    def compares(self) -> bool:
        """Whether its reward compares with the prompt's reference."""
        return self.weight != 0


class ReasoningGymEnvironment(EnvironmentSettings):
    """A task of reasoning-gym: the score that its own verifier gives what stands between ``<answer>`` tags, or
    the whole answer.

    ``python -m alignment.environments.reasoning_tasks TASK`` writes its prompts. The library is an extra:
    ``rlhf-flows[reasoning-gym]``.
    """

    kind: Literal["reasoning_gym"]
    """A task of reasoning-gym."""
    task: Annotated[str, Field(pattern=r"^\w+$")]
    """The task's name there, such as `leg_counting`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The task's own settings, those with which its prompts were written."""
    attempts: Count = 1
    """Answers that may be given: one that does not get the full score is told so, and answered again."""

    def library(self) -> str | None:
        """The distribution whose version decides what it does."""
        return "reasoning-gym"


class PythonEnvironment(EnvironmentSettings):
    """A class of the user's: ``maze.py:Maze`` (a file beside the recipe) or ``package.module:Maze``.

    It runs in a process of its own. For each episode one is made as ``Maze(**options)`` and told
    ``reset(prompt, seed)``; ``prompt`` has the keys messages, reference, kind and source. ``step(answer)`` is then told
    each answer's text, and returns ``(observation, done, reward)``: a text, a boolean and a finite number.
    """

    kind: Literal["python"]
    """A class of the user's."""
    class_path: Annotated[str, Field(pattern=r"^[^:]+:[A-Za-z_]\w*$")]
    """`file.py:Name`, relative to the recipe, or `package.module:Name`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class."""

    def class_used(self) -> str | None:
        """The user's class."""
        return self.class_path


AnyEnvironment = Annotated[
    CalculatorEnvironment | ReasoningGymEnvironment | PythonEnvironment, Field(discriminator="kind")
]


def environment_data(settings: EnvironmentSettings) -> str:
    """Under which name a stage is given the file of its environment's class."""
    return f"{ENVIRONMENT}:{attribute_of(settings.class_used() or '')}"


def check_environment(settings: EnvironmentSettings | None, rewards: RewardList, sampling: Sampling) -> None:
    """Raises ValueError where an environment does not go with the rewards or the answers beside it."""
    if settings is None:
        return
    if ENVIRONMENT in map(reward_name, rewards):
        raise ValueError(f"a reward is called {ENVIRONMENT}, as the environment's own is; give it another name")
    if settings.max_tokens < sampling.max_new_tokens:
        raise ValueError(
            f"environment.max_tokens={settings.max_tokens} is less than one answer may have: "
            f"sampling.max_new_tokens={sampling.max_new_tokens}"
        )
