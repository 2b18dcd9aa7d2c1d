"""The settings of the stage that draws responses."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from alignment.recipe.base import BASE, Count, Name
from alignment.recipe.judges import Endpoint
from alignment.recipe.stages.prompting import EXAMPLES, Prompting
from alignment.recipe.stages.spec import StageSettings, StageSpec
from alignment.records import Sampling


class SampleStage(StageSettings):
    """Draws ``per_prompt`` responses to every training prompt from a policy."""

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.sample",
        makes=("responses",),
        reads={"model": "policy", "reward": "reward_model"},
        data=("prompts",),
        sharing="pieces",
        samples=True,
        encoder_decoder_roles=("model",),
        headline=("responses",),
    )
    kind: Literal["sample"]
    """Responses of a policy."""
    model: Name = BASE
    """The policy that answers: a stage, or `base`."""
    endpoint: Endpoint | None = None
    """An OpenAI-compatible server that answers in place of `model`: a teacher of which nothing else is to be had. It is
    sent each answer's seed, and of `sampling` the temperature, top_p, stop and max_new_tokens. null: `model`."""
    per_prompt: Annotated[int, Field(ge=1, le=64)] = 4
    """Responses to each prompt."""
    sampling: Sampling = Sampling(temperature=1.0, top_p=0.95, max_new_tokens=128)
    """How responses are drawn."""
    prompting: Prompting | None = None
    """The form in which prompts are put: system message, solved examples, chain of thought, votes. What was put stands
    in `asked.jsonl`, what was written in `written.jsonl`; who trains on the responses reads the plain prompts. null:
    the prompts as they are."""
    best_of: Count = 1
    """Candidates for each response, of which `reward` keeps the best (Stiennon et al. 2020). 1: no choice."""
    reward: Name | None = None
    """The stage of kind `reward` that chooses among candidates."""
    batch_size: Count = 64
    """Responses sampled together."""
    limit: Count | None = None
    """Prompts, taken in the order of their digests: from all parts of the file. null: all."""
    workers: Count | None = None
    """Processes. null: `resources.workers`. Their number does not change the responses."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.best_of > 1) != (self.reward is not None):
            raise ValueError("best_of above 1 needs a reward that chooses, and a reward chooses only among best_of")
        if 1 < self.sampling.beams < self.per_prompt:
            raise ValueError(f"{self.sampling.beams} beams end in no more responses than that: lower per_prompt")
        if self.sampling.beams > 1 and self.best_of > 1:
            raise ValueError("beams are no draws of their own: best_of needs sampling")
        return self

    @model_validator(mode="after")
    def _a_server_knows_these(self) -> Self:
        if self.endpoint is None:
            return self
        if self.model != BASE:
            raise ValueError(f"model={self.model} and endpoint: one of them answers, leave the other out")
        if self.best_of > 1:
            raise ValueError("best_of is for a model of a stage: draw per_prompt, and choose by rejection_sampling")
        if (self.workers or 1) > 1:
            raise ValueError("endpoint.concurrency says how many answers are drawn at a time: set workers to 1")
        usual = Sampling()
        for name in ("top_k", "min_p", "repetition_penalty", "beams"):
            if getattr(self.sampling, name) != getattr(usual, name):
                raise ValueError(f"sampling.{name} is not part of an endpoint's interface: leave it out")
        return self

    @model_validator(mode="after")
    def _a_form_draws_by_itself(self) -> Self:
        if self.prompting is not None and self.best_of > 1:
            raise ValueError("best_of scores plain prompts: draw per_prompt, and choose by rejection_sampling")
        if self.prompting is not None and self.prompting.votes > 1 and self.sampling.beams > 1:
            raise ValueError("beams are no draws of their own: prompting.votes needs sampling")
        return self

    def named_files(self) -> dict[str, str]:
        """The file of its form's examples."""
        examples = None if self.prompting is None else self.prompting.examples
        return {} if examples is None else {EXAMPLES: examples}

    def prompting_used(self) -> Prompting | None:
        """The form in which it puts its prompts."""
        return self.prompting

    def inputs(self) -> dict[str, tuple[str, ...]]:
        """The stages that it reads: no policy where a server answers."""
        named = super().inputs()
        return named if self.endpoint is None else {role: read for role, read in named.items() if role != "model"}

    def endpoints_used(self) -> tuple[tuple[str, Endpoint], ...]:
        """The server that answers, with its field."""
        return () if self.endpoint is None else (("endpoint", self.endpoint),)

    def reads_base(self) -> bool:
        """Whether it is given the base: a server needs none."""
        return self.endpoint is None

    def can_be_shared(self) -> bool:
        """Whether its work may be given to workers: a server's `concurrency` is counted once."""
        return self.endpoint is None

    def answers_per_prompt(self) -> int:
        """Responses that it makes to each prompt."""
        return self.per_prompt

    def sampling_used(self) -> Sampling | None:
        """How it draws its answers; None where a server does, whose context is not known."""
        if self.endpoint is not None:
            return None
        return self.sampling if self.prompting is None else self.prompting.drawn_by(self.sampling)
