"""The cause inside an error of Ray's."""

from typing import Any

from alignment.errors import InputError, StageError


def answer_of(reference: Any, name: str) -> Any:
    """What an actor answers; its own StageError or InputError is ours, any other failure a StageError of ``name``."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, StageError | InputError):
            raise error.cause from error
        raise StageError(f"{name}: a worker failed: {error}") from error
    except ray.exceptions.RayActorError as error:
        raise StageError(f"{name}: its workers died too often (resources.max_failures): {error}") from error
