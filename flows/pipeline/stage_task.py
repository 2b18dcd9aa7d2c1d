"""A stage as a Prefect task: its cache key, its folders, its retries and what it shows on the dashboard.

A stage is cached by content. Its key is the digest of its settings, of its input artifacts, of the data files it reads
and of the code that makes it; a stage with a known key is answered from the workspace. An unfinished stage keeps its
folder ``partial/<key>``, so the same stage, run again after any kind of death, goes on from its last checkpoint.
"""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from alignment.cache_key import stage_key
from alignment.durable_files import folder_digest, remove_tree
from alignment.errors import Fault, InputError, NotFiniteError, StageError
from alignment.models.base_model import prepare_base
from alignment.models.memory import keep_freed_memory
from alignment.recipe.base import BASE, MADE_BASE
from alignment.recipe.graph import judges_of, servers_of, stage_inputs
from alignment.recipe.judges import folder_data, judge_folder
from alignment.recipe.recipe import Recipe
from alignment.recipe.rewards.components import reward_folders
from alignment.recipe.rewards.user_function import FunctionReward, data_name
from alignment.recipe.stages.environment import environment_data
from alignment.recipe.stages.spec import StageSettings
from alignment.records import Artifact
from alignment.stage import Progress, StageContext
from alignment.workspace import Workspace
from flows.cluster import run_stage
from flows.full_disk import naming_a_full_disk
from flows.monitoring.dashboard import ProgressBar, show_artifact, slug
from flows.monitoring.logs import say
from flows.monitoring.progress import listener
from flows.monitoring.prometheus import StageMetrics
from flows.monitoring.terminal import describe
from flows.monitoring.trackers import StageTrackers, TrackedStage
from flows.pipeline.concurrency_limit import slots
from flows.shutdown import letting_steps_end

_log = logging.getLogger(__name__)
DASHBOARD_SECONDS = 5.0  # between two updates of a progress artifact
WAIT_SECONDS = 3.0  # for another process that makes the same artifact, before the wait is put into words
REFRESHED = "refreshed"  # in a stage's folder below partial/: what is made anew goes on from what lies there
RETRIES = [2.0, 10.0]  # seconds before each retry, of failures that pass by themselves


def _ignored(_line: str) -> None:
    """Hears nothing."""


@dataclass(frozen=True)
class Job:
    """One stage of one run, ready to be run."""

    name: str
    recipe: Recipe
    inputs: Mapping[str, Artifact]
    data: Mapping[str, Path]
    workspace: Workspace
    run: str | None = None  # whose job it is: what it uses is not removed
    refresh: bool = False  # it is made anew although the cache knows it

    @property
    def settings(self) -> StageSettings:
        return self.recipe.stages[self.name]

    @property
    def key(self) -> str:
        """The cache key: equal keys mean equal artifacts."""
        return stage_key(self.name, self.settings, self.recipe.run_settings(self.settings), self.inputs, self.data)


def make_job(
    name: str,
    recipe: Recipe,
    made: Mapping[str, Artifact],
    data: Mapping[str, Path],
    workspace: Workspace,
    run: str | None = None,
) -> Job:
    """A stage's job from what was made before it; it is given the inputs and data that its settings name, no others."""
    settings = recipe.stages[name]
    wanted = sources_of(recipe, settings)
    files = {kind: data[kind] for kind in settings.data_files(data) if kind in data}
    # A rubric is known by the name that the recipe gives it; the stage knows it by what it is.
    files |= {what: data[path] for what, path in settings.named_files().items()}
    for reward in settings.rewards_used():
        if isinstance(reward, FunctionReward) and (path := data.get(data_name(reward))) is not None:
            files[data_name(reward)] = path
    environment = settings.environment_used()
    named: str | None = None if environment is None else environment.class_used()
    if environment is not None and named is not None and named in data:
        files[environment_data(environment)] = data[named]
    files |= {what: data[what] for what in reward_folders(settings.rewards_used())}
    files |= {what: data[folder_data(folder)] for what, folder in settings.model_folders().items()}
    if (version := settings.version_used()) is not None:
        from alignment.registry.outside_models import version_files  # MLflow takes its time

        files |= version_files(workspace, version)
    for place, judge in judges_of(settings).items():
        if (folder := judge_folder(judge)) is not None:
            files[place] = data[folder_data(folder)]
    if missing := sorted(wanted - made.keys()):
        problem = f"stage {name} needs {', '.join(missing)}, never run with these settings"
        raise InputError([Fault(problem, "run the recipe without --only and --from first", field=f"stages.{name}")])
    return Job(name, recipe, {source: made[source] for source in wanted}, files, workspace, run)


def sources_of(recipe: Recipe, settings: StageSettings) -> set[str]:
    """The artifacts that a stage is given: those that its settings name, and the base, which an adapter stands on.

    A stage that makes a base needs none, and so do those before it where the recipe names none.
    """
    wanted = {source for sources in stage_inputs(settings).values() for source in sources}
    if not settings.reads_base():
        return wanted
    stages = list(recipe.stages.values())
    before = stages[: next(place for place, stage in enumerate(stages) if stage is settings)]
    if recipe.model.base != MADE_BASE or any(stage.makes_base() for stage in before):
        wanted.add(BASE)
    return wanted


def made_of(job: Job) -> str:
    """What a stage is made of, in one sentence: its inputs, its files and its settings."""
    inputs = ", ".join(str(artifact.ref()) for artifact in job.inputs.values())
    files = "".join(f", {name} {path}" for name, path in job.data.items())
    settings = json.dumps(job.settings.model_dump(mode="json", exclude_unset=True))
    return f"{job.name} is made of {inputs}{files}, with {settings}; its key is {job.key[:12]}"


def stage_task(job: Job) -> Task[[Job], State[dict[str, Any]]]:
    """The Prefect task that runs a job: named after the stage and tagged by its kind.

    The workspace alone decides what is cached, and Prefect persists no result: a result would name its artifact by
    an absolute path, and would know neither that its files were removed nor that they were damaged.
    """
    return task(
        name=job.name,
        task_run_name=job.name,
        tags=[job.settings.kind],
        description=(type(job.settings).__doc__ or "").strip(),
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(RETRIES),
        retry_delay_seconds=RETRIES,
        retry_condition_fn=_passes_by_itself,
        log_prints=False,
    )(execute)


def execute(job: Job) -> State[dict[str, Any]]:
    """Runs a job to its published artifact, or finds the one that was made under its key, unless it is to be refreshed.

    The state's data is the artifact as JSON. Its name is "Cached" where the workspace had the artifact, or another
    process made it while this one waited for it; else "Completed".
    """
    with naming_a_full_disk(job.name, job.workspace.root):
        return _executed(job)


def _executed(job: Job) -> State[dict[str, Any]]:
    key = job.key
    if not job.refresh and (found := _claimed(job, key)) is not None:
        _forget_remains(job.workspace, key)
        return _ended("Cached", found)
    with letting_steps_end(), alone(job.workspace, key, job.name):
        found = None if job.refresh else _claimed(job, key, listener.get().warned)
        if job.refresh:
            _begin_anew(job.workspace.folder("partial", key))
        artifact = found or _make(job, key)
        remove_tree(job.workspace.root / "partial" / key)  # also of a run that died just before this
    if found is not None:
        return _ended("Cached", found)
    figures = ", ".join(f"{name} {value:.4g}" for name, value in sorted(artifact.metrics.items()))
    say(_log, f"{artifact.ref()}, {artifact.seconds:.0f} s: {figures or 'no metrics'}")
    show_artifact(artifact, job.settings.kind)
    return _ended("Completed", artifact)


def _claimed(job: Job, key: str, damaged: Callable[[str], None] = _ignored) -> Artifact | None:
    """The whole artifact of a key, noted as used by the job's run."""
    found = job.workspace.find(job.name, key, damaged)
    if found is None or (job.run is not None and not job.workspace.claim(found, job.run)):
        return None
    return found


def _ended(name: str, artifact: Artifact) -> State[dict[str, Any]]:
    state: State[dict[str, Any]] = Completed(name=name, data=artifact.model_dump(mode="json"))
    return state


def _forget_remains(workspace: Workspace, key: str) -> None:
    """Removes what a process left that died after it had published this key's artifact, and before it had put away.

    Not where somebody is at work on the key, nor what a refresh that was interrupted goes on from.
    """
    partial = workspace.root / "partial" / key
    if not partial.exists() or (partial / REFRESHED).exists():
        return
    with contextlib.suppress(Timeout), FileLock(workspace.folder("partial") / f"{key}.lock", timeout=0):
        remove_tree(partial)
        partial.with_name(f"{key}.holder").unlink(missing_ok=True)


def _begin_anew(partial: Path) -> None:
    """Removes the checkpoints of a stage to be refreshed, once: where that is interrupted, it goes on from its own."""
    mark = partial / REFRESHED
    if mark.exists():
        return
    for path in partial.iterdir():
        remove_tree(path)
    mark.touch()


def _make(job: Job, key: str) -> Artifact:
    import torch

    started, processor = time.perf_counter(), time.process_time()
    partial = job.workspace.folder("partial", key)
    output = partial / "output"
    remove_tree(output)  # what a dead run had half written
    output.mkdir()
    metrics = StageMetrics(job.workspace, job.name, {"recipe": job.recipe.name, "kind": job.settings.kind})
    trackers = StageTrackers(job.workspace, _tracked(job, key), job.recipe.tracking)
    ended_well = False
    context = StageContext(
        name=job.name,
        run=job.recipe.run_settings(job.settings),
        inputs=job.inputs,
        data=job.data,
        output=output,
        checkpoints=job.workspace.folder("partial", key, "checkpoints"),
        report=_reporter(job, metrics, trackers),
        kept=job.workspace.folder("answers"),
    )
    keep_freed_memory()
    if job.recipe.resources.threads:
        torch.set_num_threads(job.recipe.resources.threads)
    try:
        with slots(job.recipe, job.settings):
            result = run_stage(job.settings.spec.run, job.settings, context)
        ended_well = True
    except NotFiniteError as error:
        raise StageError(f"{job.name}: {error}") from error
    finally:
        metrics.close()
        trackers.close(failed=not ended_well)
    seconds = time.perf_counter() - started
    draft = Artifact(
        name=job.name,
        kind=result.kind,
        version=1,
        digest=folder_digest(output),
        path=str(output),
        key=key,
        inputs={name: artifact.ref() for name, artifact in job.inputs.items()},
        origins=(*result.origins, *servers_of(job.settings)),
        metrics=result.metrics,
        work_seconds=context.work_seconds,
        seconds=seconds,
        cpu_seconds=time.process_time() - processor + context.cpu_seconds,
        gpu_seconds=context.gpu_seconds,
        tokens_trained=result.tokens_trained,
        tokens_sampled=result.tokens_sampled,
    )
    return job.workspace.publish(draft, output, job.run)


def _tracked(job: Job, key: str) -> TrackedStage:
    """The stage as trackers name it."""
    settings = job.settings.model_dump(mode="json", exclude_unset=True)
    return TrackedStage(job.recipe.name, job.run or job.recipe.name, job.name, key, settings)


def _reporter(job: Job, metrics: StageMetrics, trackers: StageTrackers) -> Any:
    """Passes a stage's progress on to the run's listener, and now and then to Prometheus and the dashboard."""
    hears = listener.get()
    started = time.monotonic()
    last = float("-inf")
    shows = ProgressBar(f"{slug(job.name)}-progress")

    def report(progress: Progress) -> None:
        nonlocal last
        hears.stage_progress(job.name, progress)
        metrics.write(progress)
        trackers.log(progress)
        done = progress.step >= progress.total
        if time.monotonic() - last < DASHBOARD_SECONDS and not done:
            return
        last = time.monotonic()
        text = describe(progress, time.monotonic() - started)
        say(_log, f"{job.name}: step {text}", stage=job.name, step=progress.step, steps=progress.total,
            tokens=progress.tokens, metrics=dict(progress.metrics))  # fmt: skip
        shows.show(100.0 * progress.step / max(progress.total, 1), text)

    return report


def _passes_by_itself(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a failure is worth a retry: a connection or a file system may recover, a diverged loss will not."""
    try:
        state.result()
    except (ConnectionError, TimeoutError, BlockingIOError):
        return True
    except BaseException:
        return False
    return False


@contextmanager
def alone(workspace: Workspace, key: str, name: str) -> Iterator[None]:
    """One process at a time makes an artifact; the lock ends with its holder, however that one ends.

    Who has to wait says so, and for whom: the holder's name stands beside the lock.
    """
    lock = FileLock(workspace.folder("partial") / f"{key}.lock")
    holder = workspace.folder("partial") / f"{key}.holder"
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        with contextlib.suppress(OSError):
            sentence = f"{name} waits: {holder.read_text('utf-8').strip() or 'another process'} is making it"
            say(_log, sentence)
            listener.get().warned(sentence)
        lock.acquire()
    try:
        with contextlib.suppress(OSError):
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


@task(name=BASE, task_run_name=BASE, tags={"base"})
def base_task(recipe: Recipe, workspace: Workspace) -> dict[str, Any]:
    """The base model: found, downloaded or converted once."""
    with naming_a_full_disk(BASE, workspace.root):
        return prepare_base(workspace, recipe.model).model_dump(mode="json")
