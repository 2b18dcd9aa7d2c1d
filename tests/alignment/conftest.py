"""Single training stages on the tiny model: their contexts, and real artifacts for them to start from."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment.data.jsonl import write_records
from alignment.digests import pair_id, prompt_id
from alignment.durable_files import folder_digest
from alignment.models.base_model import prepare_base
from alignment.recipe.files import resolve_data
from alignment.recipe.load import load_recipe
from alignment.recipe.recipe import Recipe
from alignment.records import Artifact, Message, PreferencePair
from alignment.stage import Progress, StageContext
from alignment.training.checkpoints import COMPLETE
from alignment.workspace import Workspace
from tests.contexts import stage_context

MakeContext = Callable[..., StageContext]
LIKED = ("Red.", "The cat.", "It is red.", "Blue.", "The dog.", "It is blue.")
DISLIKED = ("What is the word for it today?", "Who saw it?", "Name it in one word, the white one.")


def tiny_pairs(count: int = 24) -> list[PreferencePair]:
    """Short answers over long ones, each under a prompt of its own."""
    pairs = []
    for number in range(count):
        prompt = (Message(role="user", content=f"What colour is the {('cat', 'dog', 'owl')[number % 3]} {number}?"),)
        chosen, rejected = LIKED[number % len(LIKED)], DISLIKED[number % len(DISLIKED)]
        pairs.append(
            PreferencePair(
                id=pair_id(prompt, chosen, rejected), prompt_id=prompt_id(prompt), prompt=prompt, chosen=chosen,
                rejected=rejected, margin=float(number % 4),
            )
        )  # fmt: skip
    return pairs


def artifact_of(name: str, kind: str, folder: Path, inputs: Mapping[str, Artifact] | None = None) -> Artifact:
    """The artifact that a folder is."""
    refs = {source: artifact.ref() for source, artifact in (inputs or {}).items()}
    return Artifact(
        name=name, kind=kind, version=1, digest=folder_digest(folder), path=str(folder), key=name, inputs=refs
    )


@pytest.fixture(scope="session")
def make_context(make_recipe: Callable[..., Path]) -> MakeContext:
    """The context of one stage of the tiny recipe in a folder: its output, its checkpoints, its data.

    ``settings`` change the stage's settings, ``changes`` any of the recipe's by their dotted names.
    """

    def make(
        folder: Path,
        name: str,
        inputs: Mapping[str, Artifact],
        *,
        settings: Mapping[str, Any] | None = None,
        changes: Mapping[str, Any] | None = None,
        report: Callable[[Progress], None] = lambda _progress: None,
    ) -> StageContext:
        changed = {f"stages.{name}.{key}": value for key, value in (settings or {}).items()} | dict(changes or {})
        if "base" in inputs and "model.base" not in changed:
            changed["model.base"] = inputs["base"].path
        path = make_recipe(folder, changes=changed)
        recipe: Recipe = load_recipe(path)
        data = resolve_data(recipe, path)
        data["rubric"] = path.parent / "rubric.yaml"
        for part in ("output", "checkpoints"):
            (folder / part).mkdir(exist_ok=True)
        return stage_context(name, recipe, inputs, data, folder / "output", folder / "checkpoints", report)

    return make


@pytest.fixture(scope="session")
def base(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny model as the run's base."""
    from alignment.recipe.run_settings import ModelSettings

    return prepare_base(Workspace(tmp_path_factory.mktemp("space")), ModelSettings(base=str(tiny_model)))


@pytest.fixture(scope="session")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """24 hand-made pairs."""
    folder = tmp_path_factory.mktemp("preferences")
    write_records(folder / "pairs.jsonl", tiny_pairs())
    return artifact_of("preferences", "preferences", folder)


@pytest.fixture(scope="session")
def sft(base: Artifact, make_context: MakeContext, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An adapter on the tiny model, really trained on the demonstrations: far from the base."""
    from alignment.stages.sft import run

    context = make_context(tmp_path_factory.mktemp("sft"), "sft", {"base": base})
    result = run(context.recipe.stages["sft"], context)  # type: ignore[arg-type]
    assert result.metrics["loss"] < 0.7 * result.curves["loss"][0][1]
    return artifact_of("sft", "model", context.output, {"base": base})


def curve(folder: Path, name: str = "loss") -> list[float]:
    """A curve of an artifact, by step."""
    return [value for _step, value in json.loads((folder / "curves.json").read_text())[name]]


MODULES = {
    "pretrain": "alignment.stages.pretraining.pretrain",
    "sft": "alignment.stages.sft", "dpo": "alignment.stages.dpo", "reward": "alignment.stages.reward",
    "grpo": "alignment.stages.grpo", "rloo": "alignment.stages.grpo", "ppo": "alignment.stages.ppo",
    "pair_classifier": "alignment.stages.pair_classifier",
    "kto": "alignment.stages.kto", "simpo": "alignment.stages.simpo", "orpo": "alignment.stages.orpo",
}  # fmt: skip


def train(context: StageContext, rank: int, workers: int, port: int) -> None:
    """A stage as one of several workers; what it made is beside its output."""
    import torch

    torch.set_num_threads(1)
    context.rank, context.workers = rank, workers
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "LOCAL_WORLD_SIZE": workers, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"})
    try:
        if workers > 1:
            if torch.distributed.is_initialized():  # by a test before, in the process that this one was forked from
                torch.distributed.destroy_process_group()
            torch.distributed.init_process_group("gloo", rank=rank, world_size=workers)
        result = import_module(MODULES[context.name]).run(context.recipe.stages[context.name], context)
        if rank == 0:
            (context.output.parent / "metrics.json").write_text(json.dumps(result.metrics))
        if workers > 1:
            torch.distributed.barrier()
    except BaseException:
        (context.output.parent / f"failed-{rank}").write_text(traceback.format_exc())
        raise


def in_processes(contexts: list[StageContext], kill: Path | None = None) -> None:
    """Forks that share a stage's batches; each one's accelerate state is its own.

    Where ``kill`` is given, rank 1 dies by SIGKILL as soon as that file is there, and the others with it, as Ray ends
    what is left of a group of workers.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    workers = [
        fork.Process(target=train, args=(context, rank, len(contexts), port)) for rank, context in enumerate(contexts)
    ]
    for worker in workers:
        worker.start()
    if kill is not None:
        deadline = time.monotonic() + 240
        while not kill.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        workers[1].kill()
        workers[1].join(10)
        for worker in workers:
            worker.kill()
            worker.join(10)
        assert workers[1].exitcode == -signal.SIGKILL
        return
    for worker in workers:
        worker.join(240)
        worker.kill()
    failures = [path.read_text() for one in contexts for path in one.output.parent.glob("failed-*")]
    assert failures == []
    assert [worker.exitcode for worker in workers] == [0] * len(workers)


def with_a_death_and_without(
    make: Callable[[Path], StageContext], root: Path
) -> tuple[tuple[str, Any], tuple[str, Any]]:
    """(digest, metrics) of a stage of two workers: one of them killed after step 4 and all begun again; undisturbed.

    ``make`` gives the context of a run in a folder.
    """

    def both(folder: Path) -> list[StageContext]:
        shutil.rmtree(folder / "output", ignore_errors=True)
        contexts = [make(folder), make(folder)]
        contexts[1].output = folder / "scratch"
        return contexts

    def made(folder: Path) -> tuple[str, Any]:
        path = folder / "output" / "curves.json"
        path.write_text(json.dumps(untimed(json.loads(path.read_text()))))
        return folder_digest(folder / "output"), untimed(json.loads((folder / "metrics.json").read_text()))

    def untimed(figures: dict[str, Any]) -> dict[str, Any]:
        return {name: figure for name, figure in figures.items() if "second" not in name}  # PPO's tell the time

    killed, whole = root / "killed", root / "whole"
    in_processes(both(whole))
    fourth = "step-000004" if make(root / "named").name in ("ppo", "grpo", "rloo") else f"checkpoint-4/{COMPLETE}"
    in_processes(both(killed), kill=killed / "checkpoints" / fourth)
    assert not (killed / "output" / "curves.json").exists()
    for path in killed.glob("failed-*"):  # what a death looks like to the other worker
        path.unlink()
    in_processes(both(killed))
    return made(killed), made(whole)


def norm(folder: Path) -> float:
    """Of all weights that a stage wrote."""
    from safetensors.torch import load_file

    [file] = (folder / "output").glob("*model.safetensors")
    return sum(float(weight.double().square().sum()) for weight in load_file(file).values()) ** 0.5


@pytest.fixture(scope="session")
def together() -> SimpleNamespace:
    """A stage in several processes: the helpers above, which no test module could import from here."""
    return SimpleNamespace(
        in_processes=in_processes, with_a_death_and_without=with_a_death_and_without, norm=norm, MODULES=MODULES
    )
