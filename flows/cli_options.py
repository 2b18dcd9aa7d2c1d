"""Arguments and options that several commands take."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's file, or the name of a shipped one.")]
WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", "-w", envvar="RLHF_WORKSPACE", help="Where everything is kept.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B.C=VALUE", help="Overrides a setting; may be repeated.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="policy@champion, policy/3, or a model's folder.")]
StoreOption = Annotated[
    str | None, typer.Option(envvar="RLHF_STORE", help="The raters' database; SQLite in the workspace if left out.")
]
RaterOption = Annotated[list[str] | None, typer.Option("--rater", metavar="NAME", help="Votes of these only.")]
SinceOption = Annotated[datetime | None, typer.Option(help="Votes from this time on, in UTC.")]
UntilOption = Annotated[datetime | None, typer.Option(help="Votes before this time, in UTC.")]
AgreementOption = Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the votes that must agree on a pair.")]
QueueOption = Annotated[str | None, typer.Option(help="Votes of this queue only.")]
WORKSPACE = Path("workspace")
