"""lm-eval (EleutherAI's evaluation harness) on a model of ours, by the names of its tasks. An extra: it comes with
``pip install 'rlhf-flows[lm-eval]'``, and nothing else here imports it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.errors import Fault, InputError

EXTRA = "pip install 'rlhf-flows[lm-eval]'"


@dataclass(frozen=True, slots=True)
class Harvest:
    """What lm-eval found: its version, its figures by task and metric as it names them, and examples by task."""

    version: str
    results: dict[str, dict[str, float]]
    n: dict[str, int]


def run_tasks(
    model: Any, tokenizer: Any, tasks: Sequence[str], *, include_path: Path | None, limit: int | None, batch_size: int
) -> Harvest:
    """Runs lm-eval's tasks on a loaded model, greedy, without its chat template, as the harness defines them.

    Tasks read their data where they say: lm-eval's own from the hub, those of ``include_path`` from where their files
    name. Raises InputError where lm-eval is not installed, or knows no such task.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError([Fault(f"lm-eval is not installed ({error})", EXTRA)]) from None
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown or not tasks:
        remedy = "`lm-eval ls tasks` lists its own; --include-path adds a folder of yours"
        raise InputError(
            [Fault(f"lm-eval knows no task {task!r}", remedy, field="--tasks") for task in unknown or [""]]
        )
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
        tasks=list(tasks),
        limit=limit,
        task_manager=manager,
        log_samples=False,
    )
    return Harvest(
        version=str(lm_eval.__version__),
        results={
            task: {name: float(value) for name, value in figures.items() if isinstance(value, int | float)}
            for task, figures in found["results"].items()
        },
        n={task: int(counts["effective"]) for task, counts in found["n-samples"].items()},
    )
