"""TODO: alignment/recipe/stages/preferences.py"""

from typing import Annotated, Literal

from pydantic import Field

from alignment.recipe.base import Count, Fraction, Name, Settings, SimulatedRaters


class PreferencesStage(Settings):
    """Raters compare the responses; their votes become consensus pairs with margins."""

    kind: Literal["preferences"]
    responses: Name | Annotated[tuple[Name, ...], Field(min_length=1)]  # of several policies, where several are named
    raters: SimulatedRaters
    comparisons_per_prompt: Count = 2
    min_agreement: Fraction = 0.5  # pairs on which fewer of the raters agree are kept as votes, not trained on


CriterionName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,23}$")]


class HumanPreferencesStage(Settings):
    """People compare the responses in the raters' app. The run waits for them without taking compute.

    Enough are ``pairs`` pairs, each judged by ``votes_per_comparison`` people of whom ``min_agreement`` agree.
    ``criteria`` (name: what 1, 3 and 5 mean) are what they may score each answer by; left out, the desk's own.
    """

    kind: Literal["human_preferences"]
    responses: Name
    comparisons_per_prompt: Count = 1
    votes_per_comparison: Count = 3
    pairs: Count = 100
    min_agreement: Fraction = 0.5
    criteria: dict[CriterionName, Annotated[str, Field(min_length=1, max_length=500)]] = Field({}, max_length=8)


class PreferenceFileStage(Settings):
    """Preferences that the user brings (``data.preferences``)."""

    kind: Literal["preference_file"]
    format: Literal["auto", "trl", "hh_rlhf", "oasst"] = "auto"
    limit: Count | None = None  # pairs, taken in the order of their digests
