"""Sampling on a pool of Ray actors: the same responses in the same order, block by block, whoever dies."""

import logging
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment.durable_files import folder_digest
from alignment.errors import StageError

SAMPLE = {"stages.responses.batch_size": 3, "stages.responses.sampling": {"max_new_tokens": 24}}  # a prompt a block
TWO = SAMPLE | {"resources.workers": 2}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_draw_what_one_draws(run: Any, tools: SimpleNamespace) -> None:
    run.need("sft")
    one, alone = run("responses", "one", SAMPLE)
    two, together = run("responses", "two", TWO)
    assert one.key == two.key
    assert folder_digest(Path(two.path)) == folder_digest(Path(one.path)) == one.digest
    assert [(p.step, p.total) for p in together.steps] == [(p.step, p.total) for p in alone.steps]
    assert two.metrics == one.metrics
    assert two.cpu_seconds > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_actor_changes_nothing_and_no_block_is_drawn_twice(run: Any, tools: SimpleNamespace) -> None:
    run.need("sft")
    one, _heard = run("responses", "one", SAMPLE)
    root = run.root / "killed"

    def some() -> bool:
        return len(list(root.glob("partial/*/checkpoints/block-*.jsonl"))) >= 3

    killer = tools.Killer(root, "1", some)
    two, heard = run("responses", "killed", TWO)
    assert killer.hit is not None
    assert two.digest == one.digest
    steps = [progress.step for progress in heard.steps]
    assert steps == sorted(set(steps))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_too_many_deaths_end_it_and_the_next_run_goes_on(run: Any, tools: SimpleNamespace) -> None:
    run.need("sft")
    one, _heard = run("responses", "one", SAMPLE)
    root = run.root / "dead"

    def blocks() -> list[Path]:
        return sorted(root.glob("partial/*/checkpoints/block-*.jsonl"))

    tools.Killer(root, "0", lambda: len(blocks()) >= 2)
    with pytest.raises(StageError, match="died too often"):
        run("responses", "dead", TWO | {"resources.max_failures": 0})
    kept = {path: path.stat().st_mtime_ns for path in blocks()}
    assert len(kept) >= 2
    two, heard = run("responses", "dead", TWO)
    assert two.digest == one.digest
    assert heard.steps[len(kept) - 1].step == len(kept)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_actor_that_stands_still_ends_the_stage_with_its_stacks(
    run: Any, tools: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    run.need("sft")
    root = run.root / "hang"

    def some() -> bool:
        return any(root.glob("partial/*/checkpoints/block-*.jsonl"))

    stopped = [tools.Killer(root, str(place), some, what=signal.SIGSTOP) for place in range(2)]
    began = time.monotonic()
    with caplog.at_level(logging.ERROR), pytest.raises(StageError, match="no step in 20 s"):
        run("responses", "hang", TWO | {"resources.stall_seconds": 20})
    assert time.monotonic() - began >= 20
    for one in stopped:
        if one.hit is not None:
            assert f"process {one.hit}:\n" in caplog.text
            try:
                os.kill(one.hit, signal.SIGCONT)
            except ProcessLookupError:
                continue


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_faults_of_the_work_come_back_as_they_are(run: Any) -> None:
    run.need("sft")
    other = run.made["base"].model_copy(update={"digest": "0" * 64})
    base, run.made["base"] = run.made["base"], other
    try:
        with pytest.raises(StageError, match="is an adapter for"):
            run("responses", "fails", TWO)
    finally:
        run.made["base"] = base
