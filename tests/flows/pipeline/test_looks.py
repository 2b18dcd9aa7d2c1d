"""Whose looks spend the level of the held-out prompts."""

import pytest

from alignment.recipe.gate import Condition, Gate
from flows.pipeline.register import spends_level


@pytest.mark.parametrize(
    ("looks", "deployed", "spends"),
    [
        (None, True, True),  # by schedule, event or votes
        (None, False, False),  # by hand
        ("always", False, True),
        ("never", True, False),
    ],
)
def test_deployed_runs_spend_the_level_by_default(looks: str | None, deployed: bool, spends: bool) -> None:
    given = {"evaluation": "evaluation", "conditions": [Condition(metric="kl", below=9)]}
    gate = Gate.model_validate(given | ({} if looks is None else {"looks": looks}))
    assert spends_level(gate, deployed=deployed) == spends
