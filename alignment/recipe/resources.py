"""Where stages run, and on how many processes."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from alignment.recipe.base import (
    Count,
    Name,
    NotNegative,
    Positive,
    Settings,
)


class Vllm(Settings):
    """A vLLM server that samples in this process's place (see :mod:`alignment.rollouts.vllm_engine`)."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    """Address of the vLLM server, such as http://host:8000."""
    model: str | None = None
    """Name under which the server serves the base model. null: the first that it lists."""
    adapters: str | None = None
    """A folder that the server can read, for adapters of policies in training. null: the stage's checkpoints."""
    concurrent: Count = 64
    """Requests in flight at a time."""
    timeout: Positive = 600.0
    """Seconds for one answer."""


class Resources(Settings):
    """Where stages run."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run. `auto`: a GPU where there is one."""
    threads: Count | None = None
    """CPU threads of each process. null: one for each core. Part of the cache key: the order of sums depends on it."""
    deterministic: bool = True
    """On a GPU, use kernels that sum in a fixed order, where torch has them. false: the faster ones."""
    vllm: Vllm | None = None
    """A vLLM server that draws the answers of `sample`, `ppo`, `grpo` and `rloo`. null: transformers, in this
    process."""
    workers: Count = 1
    """Processes that train, sample, judge and evaluate. 1 without an address: this process, and no Ray is started."""
    gpus_per_worker: NotNegative | None = None
    """GPUs of each worker; may be a fraction. null: one where the device is a GPU."""
    address: str | None = None
    """A Ray cluster: `auto` or host:port, from a machine in it; `local`: a Ray of this machine's own."""
    sharding: Literal["none", "fsdp"] = "none"
    """`fsdp`: each worker that trains holds a part of the model (FSDP2) instead of all of it."""
    min_workers: Count | None = None
    """Workers that suffice when a node is lost; more join when there is room. null: as many as `workers`."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Dead workers after which a stage fails; until then it resumes from its checkpoint."""
    stall_seconds: Positive = 1800.0
    """Seconds without a step after which a stage on Ray ends and logs its workers' stacks."""
    limit: Name | None = None
    """A Prefect concurrency limit of which a stage that loads a model holds slots, strictly."""
    slots: Count | None = None
    """Slots that each such stage holds. null: as many as its GPUs."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} is more than workers={self.workers}")
        return self

    @field_validator("address")
    @classmethod
    def _no_client(cls, address: str | None) -> str | None:
        if address is not None and "://" in address:
            raise ValueError(
                "run this command as a Ray job on the cluster, with address: auto (see docs/operations.md)"
            )
        return address
