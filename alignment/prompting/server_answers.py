"""What an OpenAI-compatible server answers to prompts: a teacher of which nothing but its answers is to be had."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.digests import content_id
from alignment.judges.answer_cache import Answers
from alignment.judges.openai_endpoint import EndpointAsker
from alignment.judges.prompts import JudgePrompt
from alignment.judges.protocol import JudgeUsage, wait_for
from alignment.recipe.judges import Endpoint
from alignment.records import Message, Prompt, Response, Sampling

LARGEST_SEED = 2**31 - 1  # what every server takes


@dataclass(frozen=True, slots=True)
class SeededPrompt(JudgePrompt):
    """One answer that is wanted. By their seeds several answers to one prompt are told apart, and kept."""

    seed: int = 0


@dataclass(frozen=True, slots=True)
class ServerWording:
    """How freely a server writes: what of :class:`Sampling` its interface knows."""

    sampling: Sampling

    @property
    def max_tokens(self) -> int:
        return self.sampling.max_new_tokens

    @property
    def temperature(self) -> float:
        return self.sampling.temperature


class SamplingAsker(EndpointAsker):
    """An endpoint that is asked for answers as such, each drawn by a seed of its own."""

    settings: ServerWording

    def _body(self, question: JudgePrompt) -> dict[str, Any]:
        sampling = self.settings.sampling
        body = super()._body(question)
        if isinstance(question, SeededPrompt):
            body["seed"] = question.seed
        if sampling.top_p < 1:
            body["top_p"] = sampling.top_p
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        return body


class ServerSampler:
    """Draws answers from a server. What was paid for is kept in the folder ``kept`` by what was sent."""

    def __init__(self, endpoint: Endpoint, sampling: Sampling, kept: Path) -> None:
        self.sampling, self.origin = sampling, endpoint.origin()
        self._asker = SamplingAsker(ServerWording(sampling), endpoint, Answers(kept))

    @property
    def tally(self) -> JudgeUsage:
        return self._asker.tally

    def draw(self, asked: Sequence[tuple[Prompt, Sequence[Message], int]]) -> list[Response]:
        """The answers to ``asked`` (prompt, the messages that put it, seed), but for those that were not given.

        Raises StageError where the server cannot be used, or its budget is spent.
        """
        questions = [SeededPrompt(tuple(messages), seed=seed % LARGEST_SEED) for _prompt, messages, seed in asked]
        replies = wait_for(self._asker.ask(questions))
        return [
            Response(
                id=content_id([self.origin, prompt.id, seed]), prompt_id=prompt.id, text=reply.text, model=self.origin,
                sampling=self.sampling, seed=seed, tokens=reply.tokens, finished=reply.finished,
            )
            for (prompt, _messages, seed), reply in zip(asked, replies, strict=True)
            if reply.text is not None
        ]  # fmt: skip
