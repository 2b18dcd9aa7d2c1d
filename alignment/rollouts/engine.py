"""What an engine is: something that continues prompts, and says how likely it thought each token.

Trainers and stages speak to this interface only, so that the same algorithm samples from a transformers model in its
own process or from a server.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

from alignment.records import Prompt, Sampling


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation of a prompt.

    ``tokens`` ends with the stop token where there is one, or with the token that completed a stop string. ``text``
    leaves out special tokens, and a stop string and what follows it. ``finished`` is False where ``max_new_tokens``
    cut it off. ``logprobs`` (float32, one per token) are under the model's softmax at the sampling temperature (at 1
    when greedy), before truncation and penalties: that is, under the policy that a trainer sees. None where the engine
    does not know them.
    """

    tokens: tuple[int, ...]
    text: str
    finished: bool
    logprobs: torch.Tensor | None = None
    version: int | None = None  # of the weights it was drawn with, where those are pushed to who draws


PromptIds: TypeAlias = tuple[Prompt, tuple[int, ...]]
"""A prompt and its tokens, as :func:`alignment.chat.render_prompt` makes them."""
Groups: TypeAlias = list[list[Completion]]
"""The completions of each prompt, in the prompts' order."""


class Engine(Protocol):
    """Continues prompts. Prompts are token ids, as :func:`alignment.chat.render_prompt` makes them."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: Sampling,
        seeds: Sequence[int],
        per_prompt: int = 1,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Groups:
        """``per_prompt`` continuations of every prompt, in the prompts' order.

        ``seeds`` holds one seed per completion, prompt after prompt; a completion's draw depends on its own seed and
        its prompt alone. ``on_progress`` is told how many completions are done, and of how many.
        """
        ...
