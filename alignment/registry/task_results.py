"""What lm-eval measured of registered versions: beside their folders, which hold what was registered and no more."""

from alignment.durable_files import write_text
from alignment.registry.records import RegisteredVersion, TaskResults
from alignment.workspace import Workspace


def task_results(workspace: Workspace, version: RegisteredVersion) -> list[TaskResults]:
    """Everything that was measured of a version, oldest first."""
    folder = workspace.root / "registry" / version.name / "tasks"
    return [
        TaskResults.model_validate_json(path.read_text("utf-8"))
        for path in sorted(folder.glob(f"v{version.version}-*.json"))
    ]


def keep_task_results(workspace: Workspace, version: RegisteredVersion, results: TaskResults) -> None:
    """Keeps what was measured: as a file, and as metrics of the version's MLflow run."""
    from alignment.registry.store import RegistryStore

    folder = workspace.folder("registry", version.name, "tasks")
    name = f"v{version.version}-{results.at:%Y%m%dT%H%M%S%f}.json"
    write_text(folder / name, results.model_dump_json(indent=1) + "\n")
    figures = {
        f"lm_eval/{task}/{metric}": value for task, found in results.results.items() for metric, value in found.items()
    }
    RegistryStore(workspace, version.name).log_metrics(version.mlflow_run, figures)
