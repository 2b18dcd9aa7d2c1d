"""The settings of stages that train on feedback, or have models write it, beside the judges themselves."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from alignment.recipe.base import Count, Name, Settings
from alignment.recipe.judges import Endpoint, Text, Writer
from alignment.recipe.stages.spec import StageSettings, StageSpec
from alignment.records import Sampling


class Principle(Settings):
    """One rule of a constitution: what to look for in an answer, and how to write it anew."""

    name: Name
    """Name of the principle, in records and in the report."""
    critique: Text
    """Instruction to criticise an answer by this principle."""
    revision: Text
    """Instruction to revise the answer by its critique."""


class ConstitutionStage(StageSettings):
    """Critique and revision by written principles (Bai et al. 2022, "Constitutional AI", section 3).

    Every response is criticised by a principle that the seed draws, and revised by its own critique, ``rounds`` times.
    The last revision becomes a demonstration, and is preferred to the response that it began with.
    """

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.feedback.constitution",
        makes=("preferences", "demonstrations"),
        reads={"responses": "responses", "writer": "policy"},
        headline=("revised", "pairs"),
    )
    kind: Literal["constitution"]
    """Critique and revision by principles."""
    responses: Name | Annotated[tuple[Name, ...], Field(min_length=1)]
    """The stage or stages whose responses are revised."""
    writer: Writer
    """Who writes critiques and revisions."""
    principles: Annotated[tuple[Principle, ...], Field(max_length=200)] = ()
    """The principles; give these or `constitution`."""
    constitution: str | None = None
    """A YAML file with `principles`, relative to the recipe."""
    rounds: Annotated[int, Field(ge=1, le=16)] = 1
    """Revisions of each response, each by a principle of its own."""
    json_answers: bool = False
    """Ask for JSON and read nothing else. Small models write prose better."""
    limit: Count | None = None
    """Responses that are revised, taken in the order of their digests. null: all."""

    @model_validator(mode="after")
    def _has_principles(self) -> Self:
        if bool(self.principles) == (self.constitution is not None):
            raise ValueError("give principles, or the file of a constitution that has them")
        check_principles(self.principles)
        return self

    def inputs(self) -> dict[str, tuple[str, ...]]:
        """The stages that it reads, the writer's among them."""
        writer = {} if self.writer.model is None else {"writer": (self.writer.model,)}
        responses = (self.responses,) if isinstance(self.responses, str) else self.responses
        return {"responses": responses, **writer}

    def named_files(self) -> dict[str, str]:
        """The constitution, where it is a file."""
        return {} if self.constitution is None else {"constitution": self.constitution}

    def endpoints_used(self) -> tuple[tuple[str, Endpoint], ...]:
        """The endpoint that writes, with its field."""
        endpoint = self.writer.endpoint
        return () if endpoint is None else (("writer.endpoint", endpoint),)

    def written_tokens(self) -> int:
        """The longest revision, in tokens."""
        return self.writer.max_tokens


class SynthesisStage(StageSettings):
    """Responses to be rated, of several models under several principles (Cui et al. 2023, "UltraFeedback").

    Each response is by a model and a principle that the seed draws; the principle is its system message, which nobody
    who trains on the response sees. A prompt meets every model before it meets one twice. Near-duplicates among the
    prompts and among a prompt's responses are left out, and so is whatever repeats a held-out prompt. The stage
    ``judge`` makes preferences of what is left.
    """

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.feedback.synthesis",
        makes=("responses",),
        reads={"models": "policy"},
        data=("prompts",),
        headline=("responses",),
    )
    kind: Literal["synthesis"]
    """Responses of several models under several principles."""
    models: tuple[Name, ...] = ()
    """Stages that make policies, or `base`."""
    endpoints: tuple[Endpoint, ...] = ()
    """OpenAI-compatible servers that answer as well."""
    principles: Annotated[dict[Name, Text], Field(min_length=1, max_length=50)]
    """System messages by name; each response is drawn under one."""
    per_prompt: Annotated[int, Field(ge=2, le=64)] = 4
    """Responses to each prompt. 4: Cui et al. 2023."""
    sampling: Sampling = Sampling(temperature=1.0, top_p=0.95, max_new_tokens=128)
    """How responses are drawn. Endpoints take temperature and length from it, and nothing else."""
    batch_size: Count = 64
    """Responses sampled together."""
    limit: Count | None = None
    """Prompts, taken in the order of their digests: from all parts of the file. null: all."""
    near_duplicate: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Jaccard index of two texts' word triples from which they count as near-duplicates."""
    contamination_words: Annotated[int, Field(ge=3, le=50)] = 8
    """Consecutive words shared with a held-out prompt from which a prompt counts as its repetition."""

    @model_validator(mode="after")
    def _someone_answers(self) -> Self:
        if not self.models and not self.endpoints:
            raise ValueError("name models, endpoints or both: who answers")
        names = [*self.models, *(endpoint.model for endpoint in self.endpoints)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two that answer have the same name: {', '.join(twice)}")
        if self.sampling.beams > 1:
            raise ValueError("beams are no draws of their own")
        return self

    def answers_per_prompt(self) -> int:
        """Responses that it makes to each prompt."""
        return self.per_prompt

    def avoids_held_out(self) -> bool:
        """Whether it leaves out what repeats a held-out prompt."""
        return True

    def sampling_used(self) -> Sampling:
        """How it draws its answers."""
        return self.sampling

    def endpoints_used(self) -> tuple[tuple[str, Endpoint], ...]:
        """The endpoints that answer, each with its field."""
        return tuple((f"endpoints.{index}", endpoint) for index, endpoint in enumerate(self.endpoints))


def check_principles(principles: tuple[Principle, ...]) -> None:
    """Raises ValueError where two principles have one name."""
    names = [principle.name for principle in principles]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two principles have the same name: {', '.join(twice)}")
