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
    critique: Text
    revision: Text


class ConstitutionStage(StageSettings):
    """Critique and revision by written principles (Bai et al. 2022, "Constitutional AI", section 3).

    Every response is criticised by a principle that the seed draws, and revised by its own critique, ``rounds`` times.
    The last revision becomes a demonstration, and is preferred to the response that it began with.
    """

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.constitution",
        makes=("preferences", "demonstrations"),
        reads={"responses": "responses", "writer": "policy"},
        headline=("revised", "pairs"),
    )
    kind: Literal["constitution"]
    responses: Name | Annotated[tuple[Name, ...], Field(min_length=1)]
    writer: Writer
    principles: Annotated[tuple[Principle, ...], Field(max_length=200)] = ()
    constitution: str | None = None  # a YAML file with `principles` instead; relative to the recipe
    rounds: Annotated[int, Field(ge=1, le=16)] = 1
    json_answers: bool = False  # asks for JSON and reads nothing else; small models write prose better
    limit: Count | None = None  # responses

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
        run="alignment.stages.synthesis",
        makes=("responses",),
        reads={"models": "policy"},
        data=("prompts",),
        headline=("responses",),
    )
    kind: Literal["synthesis"]
    models: tuple[Name, ...] = ()  # stages that make models, or base
    endpoints: tuple[Endpoint, ...] = ()
    principles: Annotated[dict[Name, Text], Field(min_length=1, max_length=50)]  # by name
    per_prompt: Annotated[int, Field(ge=2, le=64)] = 4
    sampling: Sampling = Sampling(temperature=1.0, top_p=0.95, max_new_tokens=128)  # endpoints: temperature and length
    batch_size: Count = 64
    limit: Count | None = None  # prompts
    near_duplicate: Annotated[float, Field(gt=0, le=1)] = (
        0.8  # Jaccard index of their word triples, from which it is one
    )
    contamination_words: Annotated[int, Field(ge=3, le=50)] = 8  # so many in a row of a held-out prompt

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
