"""``rlhf models evaluate``: lm-eval on a registered version, its results kept with the version."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from alignment.errors import Fault, InputError
from flows.command_lines import rlhf_line
from flows.console import PlainConsole
from flows.failures import open_workspace
from flows.services import servers
from flows.services.named_servers import require_named


def models_evaluate_command(
    reference: str,
    workspace: Path,
    tasks: Sequence[str],
    include_path: Path | None,
    limit: int | None,
    batch_size: int,
    *,
    as_json: bool,
) -> None:
    """Runs the tasks on the version, keeps what they found and prints it."""
    space = open_workspace(workspace)
    servers.quiet_environment(space)
    if include_path is not None and not include_path.is_dir():
        raise InputError(
            [Fault(f"there is no folder {include_path}", "name one with tasks in it", field="--include-path")]
        )
    from alignment.metrics.lm_eval import run_tasks
    from alignment.registry import find
    from alignment.registry.records import TaskResults
    from alignment.registry.task_results import keep_task_results
    from flows.services.model_version import load_version, require_decoder

    require_named(space, "mlflow")
    version = find(space, reference)
    require_decoder(f"{version.name}/{version.version}", space, "measured by lm-eval here")
    model, tokenizer = load_version(f"{version.name}/{version.version}", space)
    harvest = run_tasks(model, tokenizer, tasks, include_path=include_path, limit=limit, batch_size=batch_size)
    results = TaskResults(
        at=datetime.now(UTC), lm_eval=harvest.version, candidate=version.candidate, tasks=tuple(tasks), limit=limit,
        results=harvest.results, n=harvest.n,
    )  # fmt: skip
    keep_task_results(space, version, results)
    if as_json:
        print(json.dumps(results.model_dump(mode="json"), indent=2))
        return
    console = PlainConsole()
    for task, figures in results.results.items():
        words = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        console.print(f"{task} ({results.n.get(task, 0)} examples): {words}")
    show = rlhf_line("models", "show", f"{version.name}/{version.version}", workspace=workspace, here=True)
    console.print(f"kept with {version}: `{show}` shows it")
