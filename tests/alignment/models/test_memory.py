"""Memory that runs out is said in words that help: which stage, and which of its settings to lower."""

import pytest
import torch

from alignment.errors import StageError
from alignment.models.memory import naming_what_ran_out
from alignment.recipe.stages.feedback.preferences import HumanPreferencesStage
from alignment.recipe.stages.preference.dpo import DpoStage
from alignment.recipe.stages.sft import SftStage


def test_an_allocation_that_fails_names_the_stage_and_what_to_lower() -> None:
    settings = DpoStage(kind="dpo", model="base", preferences="pairs", batch_size=8, max_length=1024)
    with pytest.raises(StageError) as caught, naming_what_ran_out("dpo", settings):
        torch.empty(2**50)  # four petabytes
    assert str(caught.value) == (
        "dpo: there is no memory left; lower batch_size (it is 8) or max_length (it is 1024), or set "
        "gradient_checkpointing: true, or see what `rlhf plan` says each stage needs. A finished stage and the last "
        "checkpoint are kept"
    )
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_only_settings_that_a_stage_has_are_named() -> None:
    settings = HumanPreferencesStage(kind="human_preferences", responses="answers")
    with (
        pytest.raises(StageError, match=r"^merge: there is no memory left; see what"),
        naming_what_ran_out("merge", settings),
    ):
        torch.empty(2**50)


def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="must match"), naming_what_ran_out("sft", SftStage(kind="sft")):
        torch.ones(2) + torch.ones(3)
