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
    model: str | None = None  # the name under which it serves the base model; None: the first that it lists
    adapters: str | None = None  # a folder that it can read, for policies in training; None: the stage's checkpoints
    concurrent: Count = 64  # requests at a time
    timeout: Positive = 600.0  # seconds for one answer


class Resources(Settings):
    """Where stages run."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Count | None = None  # CPU threads; None: one per core. Part of the run's identity: sums depend on it
    deterministic: bool = True  # on a GPU: kernels that sum in one order, where torch has them; false: the faster ones
    vllm: Vllm | None = None  # samples for the stages sample, ppo, grpo and rloo; None: transformers, in this process
    workers: Count = 1  # processes that train, sample, judge and evaluate; 1 without an address: this one, and no Ray
    gpus_per_worker: NotNegative | None = None  # None: one where the device is a GPU
    address: str | None = None  # a Ray cluster's: "auto" or host:port, from a machine in it; "local": a Ray of this one
    sharding: Literal["none", "fsdp"] = "none"  # "fsdp": workers that train hold a part of a model each, not all of it
    min_workers: Count | None = None  # so few go on when a node is lost, more join when there is room; None: `workers`
    max_failures: Annotated[int, Field(ge=0)] = 3  # dead workers after which a stage ends; before, it goes on
    stall_seconds: Positive = 1800.0  # without a step, after which a stage on Ray ends with its workers' stacks
    limit: Name | None = None  # a Prefect concurrency limit of which a stage that loads a model holds slots, strictly
    slots: Count | None = None  # how many; None: its GPUs

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} is more than workers={self.workers}")
        return self

    @field_validator("address")
    @classmethod
    def _no_client(cls, address: str | None) -> str | None:
        if address is not None and "://" in address:
            raise ValueError("run this command as a Ray job on the cluster, with address: auto (see README)")
        return address
