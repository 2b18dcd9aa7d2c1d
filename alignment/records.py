"""What flows between stages. Every record is frozen; rankings are best first.

Records are written as JSON lines by :mod:`alignment.data.jsonl` and read back by their pydantic schema, so a stage
never guesses what another one meant.
"""

from datetime import datetime
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

RaterKind = Literal["human", "simulated", "judge"]
FeedbackKind = Literal["pairs", "thumbs", "rewrites", "scores", "spans"]  # what people are asked; pairs, or one answer
Outcome = Literal["ranked", "both_bad", "skipped", "flagged", "up", "down", "edited", "scored", "marked"]
ALONE = ("up", "down", "edited", "scored", "marked")  # the outcomes of an answer that stands alone


class Record(BaseModel):
    """Base of all records: immutable, and unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One turn of a conversation; a ``tool``'s is what came of the assistant's call before it, and nobody learns it."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Prompt(Record):
    """A conversation that waits for the assistant's next turn (the last message is the user's)."""

    id: str
    messages: tuple[Message, ...] = Field(min_length=1)
    kind: str = "general"  # the slice that the report groups by: "code", "arithmetic" …
    source: str = ""
    reference: str | None = None  # a known good answer, where there is one


class Demonstration(Record):
    """A conversation to imitate; the last message is the assistant's."""

    id: str
    messages: tuple[Message, ...] = Field(min_length=2)
    kind: str = "general"
    source: str = ""


class Sampling(Record):
    """How a response is drawn. ``temperature=0`` is greedy, or with ``beams`` above 1 the best of that many beams."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Divisor of the logits. 0: greedy, or beam search where `beams` is above 1."""
    top_k: int = Field(default=0, ge=0)
    """Draw from the k most likely tokens only. 0: off."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the fewest tokens whose probabilities sum to this (Holtzman et al. 2020). 1: off."""
    min_p: float = Field(default=0.0, ge=0, lt=1)
    """Draw from tokens at least this share as likely as the likeliest (Nguyen et al. 2024). 0: off."""
    repetition_penalty: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Divides positive and multiplies negative logits of tokens that occurred (Keskar et al. 2019). 1: off."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens at which an answer is cut off, EOS included."""
    stop: tuple[str, ...] = ()
    """Texts at which an answer ends."""
    beams: int = Field(default=1, ge=1)
    """Beams of a beam search. 1: off."""

    @model_validator(mode="after")
    def _beams_fit(self) -> Self:
        if self.beams > 1 and (self.temperature > 0 or self.stop):
            raise ValueError("beam search draws nothing and knows no stop strings: temperature 0, and no stop")
        return self


class Response(Record):
    """One sampled answer, with everything needed to draw it again."""

    id: str
    prompt_id: str
    text: str
    model: str  # "stage@version:digest", or the base model's reference
    sampling: Sampling
    seed: int
    tokens: int = Field(ge=0)  # generated tokens, EOS included
    finished: bool = True  # False: cut off at max_new_tokens. Files from before this was kept do not say it


class EpisodeTurn(Record):
    """One turn of an episode: an answer of the policy, with the reward that it brought, or what came back."""

    role: Literal["user", "assistant", "tool"]
    content: str
    reward: float | None = None


class EpisodeResponse(Response):
    """An episode's last answer, with all turns that followed the prompt. ``tokens`` are those that the policy drew;
    ``reward`` is the environment's, summed over its steps."""

    turns: tuple[EpisodeTurn, ...]
    reward: float


class Comparison(Record):
    """The question put to raters: which of these answers is better? With one answer: is it good or bad?"""

    id: str
    prompt: Prompt
    responses: tuple[Response, ...] = Field(min_length=1, max_length=9)


class Vote(Record):
    """One rater's verdict on one comparison; never changed, only superseded.

    ``ranking`` holds response ids, best first, ties sharing a group; it is complete when ``outcome`` is "ranked" and
    empty otherwise. ``strength`` (pairs only) is 0 for a tie, else 1 (slightly) to 3 (much better).
    """

    id: str
    comparison_id: str
    rater: str
    rater_kind: RaterKind
    outcome: Outcome
    ranking: tuple[tuple[str, ...], ...] = ()
    strength: int | None = Field(default=None, ge=0, le=3)
    criteria: dict[str, int] = {}
    comment: str = ""
    seconds: float | None = Field(default=None, ge=0)
    created: datetime | None = None  # None: made by a program, whose output must not depend on the clock
    supersedes: str | None = None

    @model_validator(mode="after")
    def _ranking_fits_outcome(self) -> Self:
        ids = [response for group in self.ranking for response in group]
        if len(ids) != len(set(ids)):
            raise ValueError("a response is ranked twice")
        if (self.outcome == "ranked") != (len(ids) >= 2):
            raise ValueError("a ranked vote ranks at least two responses; any other outcome ranks none")
        return self


class PreferencePair(Record):
    """Chosen over rejected, for one prompt: what reward models and DPO train on.

    ``chosen_finished`` and ``rejected_finished`` are False for an answer that was cut off at its longest length, of
    which no end is to be learned.
    """

    id: str
    prompt_id: str
    prompt: tuple[Message, ...] = Field(min_length=1)
    chosen: str
    rejected: str
    margin: float | None = Field(default=None, ge=0, allow_inf_nan=False)  # None: strength unknown
    raters: int = Field(default=1, ge=1)
    agreement: float | None = Field(default=None, ge=0, le=1)  # share of the votes that went the pair's way
    rater_kind: RaterKind | Literal["file", "constitution"] = "file"
    kind: str = "general"
    chosen_finished: bool = True
    rejected_finished: bool = True


class Feedback(Record):
    """One answer that was found good (``label``) or bad; ``finished`` is False where it was cut off."""

    id: str
    prompt_id: str
    prompt: tuple[Message, ...] = Field(min_length=1)
    completion: str
    label: bool
    kind: str = "general"
    finished: bool = True


class ArtifactRef(Record):
    """An artifact by name, version and digest: how lineage speaks of it."""

    name: str
    kind: str
    version: int
    digest: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}:{self.digest[:12]}"


class Artifact(ArtifactRef):
    """A stage's output: an immutable folder in the workspace."""

    path: str
    key: str  # cache key: configuration + inputs + code
    inputs: dict[str, ArtifactRef] = {}
    origins: tuple[str, ...] = ()  # what it is made of that no artifact is: servers, models from outside
    metrics: dict[str, float] = {}
    work_seconds: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    tokens_trained: int = 0
    tokens_sampled: int = 0

    def ref(self) -> ArtifactRef:
        return ArtifactRef(name=self.name, kind=self.kind, version=self.version, digest=self.digest)
