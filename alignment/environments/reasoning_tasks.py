"""Tasks of reasoning-gym as environments, and as files of prompts for them.

    python -m alignment.environments.reasoning_tasks leg_counting --size 500 --seed 1 --out prompts.jsonl

Each of its prompts names its place in the task (``source: reasoning_gym/leg_counting/1/500/7``: the eighth of 500 of
seed 1), from which the environment makes the entry again that its answer is scored by.
"""

import argparse
import importlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

INSTALL = "pip install 'rlhf-flows[reasoning-gym]'"
TRY_AGAIN = "That is not right. Try again."


class TaskError(Exception):
    """What is wrong with a task or its prompts."""


class ReasoningTask:
    """An :class:`alignment.environments.protocol.Environment` over one entry of a task."""

    def __init__(self, task: str, attempts: int, options: Mapping[str, Any]) -> None:
        self.task, self.left, self.options = task, attempts, options
        self.dataset: Any = None
        self.entry: dict[str, Any] = {}

    def reset(self, prompt: Mapping[str, Any], _seed: int) -> None:
        """Makes the entry again that the prompt asks. Raises TaskError where the prompt is not of the task."""
        seed, size, index = place_of(prompt["source"], self.task)
        self.dataset = dataset_of(self.task, seed, size, self.options)
        self.entry = self.dataset[index]
        if self.entry["question"].strip() not in prompt["messages"][-1]["content"]:
            raise TaskError(
                f"{prompt['source']} asks something else than the prompt; write the prompts anew, with these options"
            )

    def step(self, answer: str) -> tuple[str, bool, float]:
        """The score of an answer; one that is not fully right may be given again while attempts are left."""
        gym = library()
        tagged = gym.utils.extract_answer(answer)
        score = float(self.dataset.score_answer(answer=answer.strip() if tagged is None else tagged, entry=self.entry))
        self.left -= 1
        done = score >= 1 or self.left == 0
        return ("", True, score) if done else (TRY_AGAIN, False, 0.0)


def library() -> Any:
    """reasoning-gym. Raises TaskError where it is not installed."""
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise TaskError(f"reasoning-gym is not installed ({error}); {INSTALL}") from error


def task_problem(task: str, options: Mapping[str, Any]) -> str | None:
    """What is wrong with a task and its options; None where nothing is."""
    try:
        dataset_of(task, 0, 1, options)[0]
    except TaskError as problem:
        return str(problem)
    return None


def place_of(source: str, task: str) -> tuple[int, int, int]:
    """The seed, size and index of a task's prompt. Raises TaskError where the prompt is of another, or of none."""
    parts = source.split("/")
    numbers = [int(part) for part in parts[2:] if part.isdecimal()]
    if parts[:2] != ["reasoning_gym", task] or len(parts) != 5 or len(numbers) != 3 or numbers[2] >= numbers[1]:
        raise TaskError(f"source is {source!r}, and no place in {task}, such as reasoning_gym/{task}/1/500/0")
    return numbers[0], numbers[1], numbers[2]


def dataset_of(task: str, seed: int, size: int, options: Mapping[str, Any]) -> Any:
    """A task's entries. Raises TaskError for an unknown task, or options that are not its own."""
    return _dataset(task, seed, size, json.dumps(options, sort_keys=True))


@lru_cache(maxsize=4)  # some tasks make all their entries at once
def _dataset(task: str, seed: int, size: int, options: str) -> Any:
    gym = library()
    if task not in gym.factory.DATASETS:
        known = sorted(name for name in gym.factory.DATASETS if name[:3] == task[:3])
        raise TaskError(f"reasoning-gym has no task {task}" + (f"; it has {', '.join(known)}" if known else ""))
    try:
        return gym.create_dataset(task, **{**json.loads(options), "seed": seed, "size": size})
    except Exception as error:  # each task checks its options in its own way
        raise TaskError(f"{task} refuses its options: {type(error).__name__}: {error}") from error


def rows(task: str, size: int, seed: int, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of a prompts file: ``size`` entries of a task. Raises TaskError as :func:`dataset_of` does."""
    dataset = dataset_of(task, seed, size, options)
    return [
        {
            "prompt": dataset[index]["question"],
            "reference": str(dataset[index]["answer"]),
            "kind": task,
            "source": f"reasoning_gym/{task}/{seed}/{size}/{index}",
        }
        for index in range(size)
    ]


def main(arguments: list[str] | None = None) -> None:
    """Writes a task's prompts; exits with 2 and one line where it cannot."""
    parser = argparse.ArgumentParser(prog="reasoning_tasks", description="Writes prompts of a task of reasoning-gym.")
    parser.add_argument("task")
    parser.add_argument("--size", type=int, default=500, help="prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--options", type=json.loads, default={}, help="the task's own settings, as JSON")
    parser.add_argument("--out", type=Path, required=True, help="the file to write, JSON lines")
    given = parser.parse_args(arguments)
    if given.size < 1:
        parser.error("--size must be at least 1")
    if not isinstance(given.options, dict):
        parser.error("--options must be a JSON object")
    try:
        found = rows(given.task, given.size, given.seed, given.options)
    except TaskError as problem:
        parser.error(str(problem))
    given.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), "utf-8")


if __name__ == "__main__":
    main()
