"""Looks at held-out prompts: every evaluation once, whoever's it was, by the prompts and not by the file."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alignment.durable_files import folder_digest
from alignment.evaluation.looks import held_out_set
from alignment.records import Artifact
from alignment.registry.looks import EXPERIMENT, looks, next_number, record_look
from alignment.registry.store import connect
from alignment.workspace import Workspace

Made = Callable[..., Artifact]


def evaluation(folder: Path, prompts: Sequence[str], answer: str) -> Artifact:
    """An evaluation of one candidate's answers to some prompts, as its stage leaves it."""
    folder.mkdir(parents=True)
    rows = [
        {
            "prompt_id": f"id {prompt}", "kind": "general", "prompt": [{"role": "user", "content": prompt}],
            "reference": None, "texts": {"dpo": answer}, "finished": {"dpo": True}, "rewards": {}, "outcomes": {},
        }
        for prompt in prompts
    ]  # fmt: skip
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Artifact(name="evaluation", kind="evaluation", version=1, digest=folder_digest(folder), path=str(folder),
                    key=answer)  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> Made:
    count = iter(range(1000))
    return lambda prompts, answer: evaluation(tmp_path / "evaluations" / str(next(count)), prompts, answer)


def numbered(first: int, last: int) -> list[str]:
    return [f"question {number}" for number in range(first, last)]


def looked(workspace: Workspace, artifact: Artifact, recipe: str = "nightly") -> int:
    return record_look(workspace, artifact, run=f"{recipe}-1", recipe=recipe, model="policy").number


def test_every_evaluation_is_one_look(workspace: Workspace, made: Made) -> None:
    first = made(numbered(0, 20), "first")
    assert next_number(workspace, held_out_set(numbered(0, 20))) == 1
    assert looked(workspace, first) == 1
    assert looked(workspace, made(numbered(0, 20), "second")) == 2
    assert looked(workspace, first) == 1  # read again from the cache
    assert looked(workspace, made(numbered(0, 20), "first"), "elsewhere") == 1  # the same bits, made again
    assert looked(workspace, made(numbered(0, 20), "third"), "weekly") == 3  # by another recipe
    found = looks(workspace)
    assert [(look.number, look.recipe, look.run) for look in found] == [
        (1, "nightly", "nightly-1"), (2, "nightly", "nightly-1"), (3, "weekly", "weekly-1"),
    ]  # fmt: skip
    assert found[0].held_out == held_out_set(numbered(0, 20))
    assert next_number(workspace, held_out_set(numbered(0, 20))) == 4


def test_a_changed_set_of_prompts_gives_no_new_budget(workspace: Workspace, made: Made) -> None:
    for answer in "abc":
        looked(workspace, made(numbered(0, 20), answer))
    more = [*numbered(0, 20), "one prompt more"]
    assert looked(workspace, made(more, "d")) == 4
    assert looked(workspace, made([prompt.upper() + "  " for prompt in numbered(0, 20)], "e")) == 5
    assert looked(workspace, made(numbered(0, 5), "f")) == 6
    assert looked(workspace, made(numbered(100, 120), "g")) == 1  # nobody has seen any of these
    assert looked(workspace, made(numbered(18, 38), "h")) == 6  # two of twenty are old; the five of "f" share none


def test_what_somebody_deletes_in_mlflow_still_counts(workspace: Workspace, made: Made) -> None:
    looked(workspace, made(numbered(0, 20), "a"))
    client = connect(workspace.mlflow_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    client.delete_run(client.search_runs([experiment])[0].info.run_id)
    assert looked(workspace, made(numbered(0, 20), "b")) == 2
    client.delete_experiment(experiment)
    assert looked(workspace, made(numbered(0, 20), "c")) == 3


def test_runs_at_the_same_time_get_a_number_each(workspace: Workspace, made: Made) -> None:
    artifacts = [made(numbered(0, 20), f"answer {place}") for place in range(8)]
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda artifact: looked(workspace, artifact), artifacts))
    assert sorted(numbers) == list(range(1, 9))
    assert sorted(look.number for look in looks(workspace)) == list(range(1, 9))


def test_workspaces_of_one_store_share_their_looks(
    workspace: Workspace, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", workspace.mlflow_uri)
    (tmp_path / "there").mkdir()
    there = Workspace(tmp_path / "there")
    assert looked(workspace, made(numbered(0, 20), "a")) == 1
    assert looked(there, made(numbered(0, 20), "b")) == 2
    assert looked(there, made(numbered(0, 20), "a")) == 1
    assert len(looks(workspace)) == 2


@pytest.mark.slow
def test_many_looks_are_counted_in_a_moment(workspace: Workspace, made: Made) -> None:
    """More than one page of MLflow's answer holds: a night each for three years."""
    looked(workspace, made(numbered(0, 20), "a"))
    client = connect(workspace.mlflow_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    tags = client.search_runs([experiment])[0].data.tags
    for night in range(1, 1100):
        client.create_run(experiment, tags={**tags, "look.identity": f"night {night}"})
    assert looked(workspace, made(numbered(0, 20), "b")) == 1101
