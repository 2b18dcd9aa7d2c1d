"""What makes a stage's cache key, and which failures are tried again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from alignment.durable_files import folder_digest
from alignment.errors import InputError, StageError
from alignment.models.base_model import prepare_base
from alignment.recipe.files import resolve_data
from alignment.recipe.load import load_recipe
from alignment.records import Artifact
from alignment.workspace import Workspace
from flows.pipeline.stage_task import Job, execute, make_job

MakeRecipe = Callable[..., Path]
MADE = {
    name: Artifact(name=name, kind="any", version=1, digest=f"{number:064x}", path="/none", key=name)
    for number, name in enumerate(("sft", "responses", "preferences", "reward", "dpo"))
}


@pytest.fixture
def job(tiny_model: Path, make_recipe: MakeRecipe, tmp_path: Path) -> Callable[..., Job]:
    """Makes the job of one stage of a recipe with changes, in a folder of its own."""
    count = 0

    def make(name: str, changes: dict[str, Any] | None = None, edit: str | None = None, **made: Artifact) -> Job:
        nonlocal count
        count += 1
        path = make_recipe(tmp_path / str(count), changes=changes)
        for final in ("final.jsonl", "same.jsonl"):
            (path.parent / final).write_text('{"prompt": "Who is there?"}\n{"prompt": "Where is it?"}\n')
        if edit:
            file = path.parent / edit
            file.write_text(file.read_text() + ("# a comment\n" if edit.endswith("yaml") else "\n"))
        recipe, workspace = load_recipe(path), Workspace(tmp_path / "workspace")
        base = prepare_base(workspace, recipe.model)
        return make_job(name, recipe, {"base": base} | MADE | made, resolve_data(recipe, path), workspace)

    return make


@pytest.mark.parametrize("name", ["sft", "responses", "preferences", "reward", "dpo", "evaluation"])
def test_equal_recipes_in_two_places_share_a_key(job: Callable[..., Job], name: str) -> None:
    assert job(name).key == job(name).key


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"stages.dpo.learning_rate": 9e-4}, {"dpo"}),
        ({"stages.sft.lora.rank": 2}, {"sft"}),
        ({"stages.evaluation.raters.noise": 0.9}, {"evaluation"}),
        ({"description": "other words"}, set()),
        ({"gate.conditions": [{"metric": "kl", "below": 3}]}, set()),
        ({"model.registered_name": "other"}, set()),
        ({"seed": 6}, {"sft", "responses", "preferences", "reward", "dpo", "evaluation"}),
        ({"model.dtype": "bfloat16"}, {"sft", "responses", "preferences", "reward", "dpo", "evaluation"}),
    ],
)
def test_a_setting_changes_the_keys_of_the_stages_that_read_it(
    job: Callable[..., Job], changes: dict[str, Any], changed: set[str]
) -> None:
    names = ("sft", "responses", "preferences", "reward", "dpo", "evaluation")
    assert {name for name in names if job(name).key != job(name, changes).key} == changed


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("prompts.jsonl", {"responses", "evaluation"}),
        ("demonstrations.jsonl", {"sft"}),
        ("rubric.yaml", {"preferences", "evaluation"}),
    ],
)
def test_a_changed_file_changes_the_keys_of_the_stages_that_read_it(
    job: Callable[..., Job], file: str, changed: set[str]
) -> None:
    names = ("sft", "responses", "preferences", "reward", "dpo", "evaluation")
    assert {name for name in names if job(name).key != job(name, edit=file).key} == changed


FINAL = {"data.held_out_prompts": "final.jsonl"}


@pytest.mark.parametrize(
    ("before", "after", "edit", "changed"),
    [
        ({}, FINAL, None, {"evaluation"}),
        (FINAL, FINAL, "final.jsonl", {"evaluation"}),
        (FINAL, FINAL, "prompts.jsonl", {"responses"}),  # an evaluation does not read what it does not ask
        (FINAL, FINAL | {"data.held_out_prompts": "same.jsonl"}, None, set()),  # the same rows in another place
    ],
)
def test_held_out_prompts_of_their_own_are_in_the_key_of_who_asks_them(
    job: Callable[..., Job], before: dict[str, Any], after: dict[str, Any], edit: str | None, changed: set[str]
) -> None:
    names = ("sft", "responses", "preferences", "reward", "dpo", "evaluation")
    assert {name for name in names if job(name, before).key != job(name, after, edit=edit).key} == changed


def test_held_out_prompts_of_their_own_are_given_to_who_asks_or_avoids_them(job: Callable[..., Job]) -> None:
    tournament = {"kind": "tournament", "model": "sft", "policies": ["dpo", "sft"], "raters": {"rubric": "rubric.yaml"}}
    synthesis = {"kind": "synthesis", "models": ["base"], "principles": {"short": "Be brief."}}
    ppo = {"kind": "ppo", "model": "base", "reward": "reward", "raters": {"rubric": "rubric.yaml"}}
    more = FINAL | {"stages.play": tournament, "stages.made": synthesis, "stages.ppo": ppo}
    read = {name: set(job(name, more).data) for name in ("evaluation", "play", "made", "ppo", "responses", "sft")}
    assert read == {
        "evaluation": {"held_out_prompts", "rubric"},
        "play": {"held_out_prompts", "rubric"},
        "made": {"held_out_prompts", "prompts"},
        "ppo": {"prompts", "rubric"},  # settings are chosen by what it watches
        "responses": {"prompts"},
        "sft": {"demonstrations"},
    }


def test_an_input_counts_by_its_digest_alone(job: Callable[..., Job]) -> None:
    again = MADE["sft"].model_copy(update={"version": 7, "path": "/elsewhere"})
    assert job("dpo", sft=again).key == job("dpo").key
    other = MADE["sft"].model_copy(update={"digest": "f" * 64})
    assert job("dpo", sft=other).key != job("dpo").key
    assert job("dpo", reward=other).key == job("dpo").key  # DPO does not read the reward model


def test_a_stage_is_given_its_inputs_and_no_others(job: Callable[..., Job]) -> None:
    assert set(job("dpo").inputs) == {"base", "sft", "preferences"}
    assert set(job("dpo").data) == set()
    assert set(job("evaluation").inputs) == {"base", "dpo", "sft", "reward"}
    assert set(job("evaluation").data) == {"prompts", "rubric"}


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionResetError("the server went away"), True),
        (TimeoutError("no answer"), True),
        (BlockingIOError("locked"), True),
        (FloatingPointError("the loss is nan"), False),
        (StageError("no pairs"), False),
        (InputError([]), False),
        (FileNotFoundError("gone"), False),
        (MemoryError(), False),
    ],
)
def test_what_passes_by_itself_is_tried_again(prefect_server: str, error: Exception, again: bool) -> None:
    from prefect import task

    attempts = []

    @task(retries=1, retry_delay_seconds=0, retry_condition_fn=_condition())
    def work() -> None:
        attempts.append(1)
        raise error

    state = work(return_state=True)
    assert state.is_failed()
    assert len(attempts) == (2 if again else 1)


def _condition() -> Any:
    from flows.pipeline.stage_task import _passes_by_itself

    return _passes_by_itself


@pytest.mark.parametrize("case", ["nobody is there", "somebody is at work", "a refresh goes on from it"])
def test_what_a_run_left_that_died_after_it_had_published_is_put_away(job: Callable[..., Job], case: str) -> None:
    """It was killed between the rename that publishes and the removal of its checkpoints."""
    one = job("sft")
    space = one.workspace
    output = space.folder("partial", "made")
    (output / "model.txt").write_text("made")
    draft = Artifact(name="sft", kind="policy", version=0, digest=folder_digest(output), path="", key=one.key)
    space.publish(draft, output)
    checkpoint = space.folder("partial", one.key, "checkpoints") / "block-0.jsonl"
    checkpoint.write_text("{}")
    holder = space.root / "partial" / f"{one.key}.holder"
    holder.write_text("process 1 on nowhere")
    lock = FileLock(space.root / "partial" / f"{one.key}.lock")
    if case == "a refresh goes on from it":
        (space.root / "partial" / one.key / "refreshed").touch()
    if case == "somebody is at work":
        lock.acquire()
    state = execute(one)
    lock.release()
    assert state.name == "Cached"
    gone = case == "nobody is there"
    assert checkpoint.exists() is not gone
    assert holder.exists() is not gone
    assert (space.root / "partial" / one.key).exists() is not gone
