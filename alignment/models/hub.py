"""A model's files from a hub, or from the cache of what was had before, where the hub does not answer."""

import os
from collections.abc import Sequence
from pathlib import Path

from alignment.errors import Fault, InputError
from alignment.recipe.run_settings import ModelSettings

SECONDS = 5.0  # for any answer at all; the hub's own client waits for minutes
REMEDY = "give a folder, a hub name that can be reached, or embedded:smollm2-135m"


def hub_files(settings: ModelSettings, patterns: Sequence[str], *, field: str = "model.base") -> Path:
    """The folder with a hub model's files of these patterns. Raises InputError where they cannot be had.

    ``field`` is the setting that names it.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    silent = "" if constants.HF_HUB_OFFLINE else _silence(constants.ENDPOINT)
    try:
        return Path(
            snapshot_download(
                settings.base,
                revision=settings.revision,
                allow_patterns=list(patterns),
                local_files_only=bool(silent) or constants.HF_HUB_OFFLINE,
            )
        )
    except (OSError, HFValidationError, ValueError) as error:
        reason = silent or f"the hub says: {str(error).splitlines()[0][:160]}"
        problem = f"no model {settings.base!r}: not a folder beside the recipe, and {reason}"
        raise InputError([Fault(problem, REMEDY, field=field)]) from error


def _silence(endpoint: str) -> str:
    """That a hub does not answer, in words; empty where it does."""
    import httpx

    named = ", which HF_ENDPOINT names," if os.environ.get("HF_ENDPOINT") else ""
    try:
        httpx.get(endpoint, timeout=SECONDS)
    except httpx.TimeoutException:
        return f"the hub at {endpoint}{named} did not answer in {SECONDS:g} s"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"the hub at {endpoint}{named} does not answer: {error}"
    return ""
