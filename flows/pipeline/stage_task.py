"""A stage as a Prefect task: its cache key, its folders, its retries and what it shows on the dashboard.

A stage is cached by content. Its key is the digest of its settings, of its input artifacts, of the data files it reads
and of the code that makes it; a stage with a known key is answered from the workspace. An unfinished stage keeps its
folder ``partial/<key>``, so the same stage, run again after any kind of death, goes on from its last checkpoint.
"""

import fcntl
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from prefect import Task, task

from alignment.cache_key import stage_key
from alignment.errors import Fault, InputError
from alignment.models.base_model import prepare_base
from alignment.models.memory import keep_freed_memory
from alignment.recipe.base import BASE
from alignment.recipe.graph import judges_of, stage_inputs
from alignment.recipe.judges import folder_data, judge_folder
from alignment.recipe.recipe import Recipe
from alignment.recipe.rewards import FunctionReward, data_name
from alignment.recipe.stages.spec import StageSettings
from alignment.records import Artifact
from alignment.stage import Progress, StageContext
from alignment.workspace import Workspace, folder_digest
from flows.cluster import run_stage
from flows.monitoring.dashboard import ProgressBar, show_artifact, slug
from flows.monitoring.logs import say
from flows.monitoring.progress import listener
from flows.monitoring.prometheus import StageMetrics
from flows.monitoring.terminal import describe
from flows.pipeline.concurrency_limit import slots
from flows.shutdown import letting_steps_end

_log = logging.getLogger(__name__)
DASHBOARD_SECONDS = 5.0  # between two updates of a progress artifact
WAIT_SECONDS = 3.0  # for another process that makes the same artifact, before the wait is put into words
made_elsewhere: set[str] = set()  # keys of artifacts that another process published while this one waited for it
RETRIES = [2.0, 10.0]  # seconds before each retry, of failures that pass by themselves


@dataclass(frozen=True)
class Job:
    """One stage of one run, ready to be run."""

    name: str
    recipe: Recipe
    inputs: Mapping[str, Artifact]
    data: Mapping[str, Path]
    workspace: Workspace

    @property
    def settings(self) -> StageSettings:
        return self.recipe.stages[self.name]

    @property
    def key(self) -> str:
        """The cache key: equal keys mean equal artifacts."""
        return stage_key(self.name, self.settings, self.recipe.run_settings(), self.inputs, self.data)


def make_job(
    name: str, recipe: Recipe, made: Mapping[str, Artifact], data: Mapping[str, Path], workspace: Workspace
) -> Job:
    """A stage's job from what was made before it; it is given the inputs and data that its settings name, no others."""
    settings = recipe.stages[name]
    wanted = {source for sources in stage_inputs(settings).values() for source in sources}
    if settings.spec.computes:
        wanted.add(BASE)  # what an adapter stands on
    files = {kind: data[kind] for kind in settings.data_files() if kind in data}
    # A rubric is known by the name that the recipe gives it; the stage knows it by what it is.
    files |= {what: data[path] for what, path in settings.named_files().items()}
    for reward in settings.rewards_used():
        if isinstance(reward, FunctionReward) and (path := data.get(data_name(reward))) is not None:
            files[data_name(reward)] = path
    for place, judge in judges_of(settings).items():
        if (folder := judge_folder(judge)) is not None:
            files[place] = data[folder_data(folder)]
    if missing := sorted(wanted - made.keys()):
        problem = f"stage {name} needs {', '.join(missing)}, never run with these settings"
        raise InputError([Fault(problem, "run the recipe without --only and --from first", field=f"stages.{name}")])
    return Job(name, recipe, {source: made[source] for source in wanted}, files, workspace)


def made_of(job: Job) -> str:
    """What a stage is made of, in one sentence: its inputs, its files and its settings."""
    inputs = ", ".join(str(artifact.ref()) for artifact in job.inputs.values())
    files = "".join(f", {name} {path}" for name, path in job.data.items())
    settings = json.dumps(job.settings.model_dump(mode="json", exclude_unset=True))
    return f"{job.name} is made of {inputs}{files}, with {settings}; its key is {job.key[:12]}"


def stage_task(job: Job) -> Task[[Job], dict[str, Any]]:
    """The Prefect task that runs a job: named after the stage, tagged by its kind, cached under the job's key."""
    key = job.key
    return task(
        name=job.name,
        task_run_name=job.name,
        tags=[job.settings.kind],
        description=(type(job.settings).__doc__ or "").strip(),
        cache_key_fn=lambda _context, _parameters: key,
        persist_result=True,
        result_serializer="json",
        refresh_cache=job.workspace.find(job.name, key) is None,  # the artifact was removed: Prefect cannot know
        retries=len(RETRIES),
        retry_delay_seconds=RETRIES,
        retry_condition_fn=_passes_by_itself,
        log_prints=False,
    )(execute)


def execute(job: Job) -> dict[str, Any]:
    """Runs a job to its published artifact, or finds the artifact that another run just published."""
    key, workspace = job.key, job.workspace
    with letting_steps_end(), _alone(workspace, key, job.name):
        found = workspace.find(job.name, key)
        if found is not None:
            made_elsewhere.add(key)
        artifact = found or _make(job, key)
        shutil.rmtree(workspace.root / "partial" / key, ignore_errors=True)  # also of a run that died just before this
    figures = ", ".join(f"{name} {value:.4g}" for name, value in sorted(artifact.metrics.items()))
    say(_log, f"{artifact.ref()}, {artifact.seconds:.0f} s: {figures or 'no metrics'}")
    show_artifact(artifact, job.settings.kind)
    return artifact.model_dump(mode="json")


def _make(job: Job, key: str) -> Artifact:
    import torch

    started, processor = time.perf_counter(), time.process_time()
    partial = job.workspace.folder("partial", key)
    output = partial / "output"
    shutil.rmtree(output, ignore_errors=True)  # what a dead run had half written
    output.mkdir()
    metrics = StageMetrics(job.workspace, job.name, {"recipe": job.recipe.name, "kind": job.settings.kind})
    context = StageContext(
        name=job.name,
        run=job.recipe.run_settings(),
        inputs=job.inputs,
        data=job.data,
        output=output,
        checkpoints=job.workspace.folder("partial", key, "checkpoints"),
        report=_reporter(job, metrics),
        kept=job.workspace.folder("answers"),
    )
    keep_freed_memory()
    if job.recipe.resources.threads:
        torch.set_num_threads(job.recipe.resources.threads)
    try:
        with slots(job.recipe, job.settings):
            result = run_stage(job.settings.spec.run, job.settings, context)
    finally:
        metrics.close()
    seconds = time.perf_counter() - started
    draft = Artifact(
        name=job.name,
        kind=result.kind,
        version=1,
        digest=folder_digest(output),
        path=str(output),
        key=key,
        inputs={name: artifact.ref() for name, artifact in job.inputs.items()},
        metrics=result.metrics,
        work_seconds=context.work_seconds,
        seconds=seconds,
        cpu_seconds=time.process_time() - processor + context.cpu_seconds,
        gpu_seconds=context.gpu_seconds,
        tokens_trained=result.tokens_trained,
        tokens_sampled=result.tokens_sampled,
    )
    return job.workspace.publish(draft, output)


def _reporter(job: Job, metrics: StageMetrics) -> Any:
    """Passes a stage's progress on to the run's listener, and now and then to Prometheus and the dashboard."""
    hears = listener.get()
    started = time.monotonic()
    last = float("-inf")
    shows = ProgressBar(f"{slug(job.name)}-progress")

    def report(progress: Progress) -> None:
        nonlocal last
        hears.stage_progress(job.name, progress)
        metrics.write(progress)
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
def _alone(workspace: Workspace, key: str, name: str) -> Iterator[None]:
    """One process at a time makes an artifact; the lock ends with its holder, however that one ends.

    Who has to wait says so, and for whom: the holder's name stands in the file.
    """
    path = workspace.folder("partial") / f"{key}.lock"
    with path.open("a+") as file:
        waits(file, lambda holder: f"{name} waits: {holder or 'another process'} is making it")
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield  # the file stays: unlinking it would let two processes lock two files of one name


def waits(file: TextIO, words: Callable[[str], str]) -> None:
    """Locks a file. A wait of more than :data:`WAIT_SECONDS` is said, with what stands in the file."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.05)
    file.seek(0)
    sentence = words(file.read().strip())
    say(_log, sentence)
    listener.get().note(sentence)
    fcntl.flock(file, fcntl.LOCK_EX)


@task(name=BASE, task_run_name=BASE, tags={"base"})
def base_task(recipe: Recipe, workspace: Workspace) -> dict[str, Any]:
    """The base model: found, downloaded or converted once."""
    return prepare_base(workspace, recipe.model).model_dump(mode="json")
