"""What pydantic found, without its echoes."""

from pydantic import ValidationError
from pydantic_core import ErrorDetails


def errors_of(error: ValidationError) -> list[ErrorDetails]:
    """The errors, less each "too short" that only counts the items which already failed below it."""
    found = error.errors(include_url=False)
    places = [item["loc"] for item in found]

    def echoes(item: ErrorDetails) -> bool:
        at = item["loc"]
        return item["type"] == "too_short" and any(len(loc) > len(at) and loc[: len(at)] == at for loc in places)

    return [item for item in found if not echoes(item)]
