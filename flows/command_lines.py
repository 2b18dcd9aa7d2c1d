"""Commands as lines for a shell, for a person to copy: they work as printed."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from flows.cli_options import WORKSPACE, WORKSPACE_VARIABLE


def rlhf_line(*words: str | Path, workspace: Path, here: bool = False) -> str:
    """An ``rlhf`` command on a workspace, quoted for a shell.

    It names the workspace by its absolute path, and so works from any folder. With ``here`` it is for whoever gave the
    command under way, in the folder that they are in: it names the program as they did, and leaves the workspace out
    where the program would take that one by itself.
    """
    program = this_program() if here else ["rlhf"]
    option = [] if here and _is_default(workspace) else ["-w", str(workspace.resolve())]
    return shlex.join([*program, *map(str, words), *option])


def this_program() -> list[str]:
    """How a shell in this folder reaches the program that runs: by its name where that finds it."""
    given = Path(sys.argv[0])
    if given.name != "rlhf":  # `python -m flows.cli`, or another program that calls the commands
        given = Path(sys.executable).with_name("rlhf")
        if not given.is_file():
            return [sys.executable, "-m", "flows.cli"]
    found = shutil.which("rlhf")
    return ["rlhf"] if found is not None and Path(found).resolve() == given.resolve() else [str(given)]


def _is_default(workspace: Path) -> bool:
    """Whether commands without ``-w`` take this workspace: not where the variable was set for one command alone."""
    return WORKSPACE_VARIABLE not in os.environ and workspace.resolve() == WORKSPACE.resolve()
