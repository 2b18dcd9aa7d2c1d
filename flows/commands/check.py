"""`rlhf check`."""

import json
from pathlib import Path

from alignment.errors import InputError
from flows.console import PlainConsole
from flows.failures import open_workspace
from flows.recipe_source import prepare
from flows.services import servers


def check_command(given: str, workspace: Path, overrides: list[str], *, as_json: bool) -> None:
    """Prints that all is well, or raises InputError with every fault."""
    space = open_workspace(workspace)
    servers.quiet_environment(space)
    from alignment.checks.recipe import check_recipe, placed
    from flows.pipeline.environment import running_faults
    from flows.pipeline.recipe_servers import server_faults

    resolved = prepare(given, overrides)
    recipe = resolved.recipe
    faults = check_recipe(resolved, space) + placed(running_faults(recipe), resolved.path)
    faults += server_faults(resolved, space)
    if as_json:
        rows = [
            {"file": f.file, "row": f.row, "field": f.field, "problem": f.problem, "remedy": f.remedy} for f in faults
        ]
        from alignment.checks.row_counts import row_counts

        counts = {} if faults else row_counts(resolved, space)
        known = {"recipe": recipe.name, "digest": resolved.digest, "faults": rows, "rows": counts}
        print(json.dumps(known, indent=2))
    if faults:
        raise InputError(faults)
    if not as_json:
        from alignment.checks.held_out import held_out_notice
        from alignment.checks.row_counts import row_notices
        from alignment.checks.seq2seq.notice import encoder_decoder_notice

        console = PlainConsole()
        if (seen := encoder_decoder_notice(resolved, space)) is not None:
            console.print(seen)
        for notice in row_notices(resolved, space):
            console.print(notice)
        if (counted := held_out_notice(resolved)) is not None:
            console.print(counted)
        if not_asked := list(recipe.notify.variables if recipe.notify else ()):
            console.print(
                f"not asked, for nothing is to be told yet: {', '.join(f'notify.{one}' for one in not_asked)}"
            )
        console.print(f"{resolved.path}: {len(recipe.stages)} stages, nothing wrong")
