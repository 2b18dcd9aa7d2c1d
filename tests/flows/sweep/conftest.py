"""Sweeps of the tiny recipe."""

from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.sweeps.grid import read_axes, variants_of
from alignment.workspace import Workspace
from flows.sweep.variants import CheckedSweep, check_sweep

Check = Callable[..., CheckedSweep]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def check(workspace: Workspace) -> Check:
    """Checks a sweep of a recipe over what ``--over`` gives."""

    def checked(recipe: Path, *over: str, overrides: tuple[str, ...] = (), by: str | None = None) -> CheckedSweep:
        axes = read_axes(over)
        return check_sweep(str(recipe), axes, variants_of(axes), overrides, workspace, by=by)

    return checked
