"""Arguments and options that several commands take."""

import math
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

WORKSPACE_VARIABLE = "RLHF_WORKSPACE"


def _recipe_names(incomplete: str) -> list[str]:
    """Completes a recipe: the shipped ones' names, and the folders and YAML files that begin so."""
    shipped = [path.stem for path in (Path(__file__).parent / "recipes").glob("*.yaml")]
    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    found = folder.iterdir() if folder.is_dir() else ()
    files = [f"{path}/" if path.is_dir() else str(path) for path in found if path.is_dir() or path.suffix == ".yaml"]
    return sorted(name for name in [*shipped, *files] if name.startswith(incomplete))


def _run_names(context: typer.Context, incomplete: str) -> list[str]:
    """Completes a run's name: those of the workspace, newest first."""
    runs = Path(context.params.get("workspace") or WORKSPACE) / "runs"
    folders = [path for path in runs.iterdir() if path.is_dir()] if runs.is_dir() else []
    newest_first = sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.name for path in newest_first if path.name.startswith(incomplete)]


def finite(value: float | None) -> float | None:
    """Refuses the infinite, which passes a lower bound. Raises BadParameter."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number")
    return value


WORKSPACE = Path("workspace")
EMBEDDED = "embedded:smollm2-135m"  # the model that comes with the program
RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A recipe's file, or the name of a shipped one.", autocompletion=_recipe_names
    ),
]
WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", "-w", envvar=WORKSPACE_VARIABLE, help="Where everything is kept.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B.C=VALUE", help="Overrides a setting; may be repeated.")
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's name.", autocompletion=_run_names)]
NewestRunArgument = Annotated[
    str | None,
    typer.Argument(metavar="[RUN]", help="A run's name; the newest if left out.", autocompletion=_run_names),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="policy@champion, policy/3, or a model's folder.")]
DraftOption = Annotated[
    str | None, typer.Option(metavar="MODEL", help="A smaller version with the same tokens, to propose some at once.")
]
LookupOption = Annotated[
    int | None, typer.Option("--prompt-lookup", min=1, metavar="N", help="Propose N tokens that stood there before.")
]
StoreOption = Annotated[
    str | None, typer.Option(envvar="RLHF_STORE", help="The raters' database; SQLite in the workspace if left out.")
]
RaterOption = Annotated[list[str] | None, typer.Option("--rater", metavar="NAME", help="Votes of these only.")]
SinceOption = Annotated[datetime | None, typer.Option(help="Votes from this time on, in UTC.")]
UntilOption = Annotated[datetime | None, typer.Option(help="Votes before this time, in UTC.")]
AgreementOption = Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the votes that must agree on a pair.")]
QueueOption = Annotated[str | None, typer.Option(help="Votes of this queue only.")]
