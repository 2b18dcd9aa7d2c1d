"""The benchmark on real tiny policies: what it counts is what transformers generates, however often it is stopped."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment.checks.data import read_data
from alignment.data.jsonl import read_records
from alignment.errors import InputError
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.experiments.benchmark import BenchmarkStage
from alignment.records import Artifact, Prompt
from alignment.rollouts.policy_pool import PolicyPool
from alignment.stage import Progress, StageContext
from alignment.stages.experiments import benchmark
from alignment.stages.experiments.benchmark import AnsweredQuestion, Benchmark
from tests.contexts import stage_context

LABELS = ["red", "blue", "green", "gold", "yes"]
STAGE: dict[str, Any] = {
    "kind": "benchmark",
    "models": ["base", "short"],
    "tasks": {"words": {"questions": "q.jsonl", "examples": "e.jsonl", "answer": "label", "labels": LABELS}},
    "forms": {"plain": {}, "few": {"shots": 2}, "voted": {"votes": 3, "temperature": 1.0}},
    "sampling": {"temperature": 0.0, "max_new_tokens": 6},
    "batch_size": 6,
}
COLOURS = ("red", "blue", "green", "gold")


def rows(count: int, offset: int = 0) -> list[dict[str, str]]:
    numbers = range(offset, offset + count)
    return [
        {"prompt": f"say {COLOURS[n % 4]} {COLOURS[n // 4 % 4]} {COLOURS[n // 16 % 4]}", "reference": LABELS[n % 5]}
        for n in numbers
    ]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {"words.questions": tmp_path / "q.jsonl", "words.examples": tmp_path / "e.jsonl"}
    found["words.questions"].write_text("".join(json.dumps(row) + "\n" for row in rows(20)))
    found["words.examples"].write_text("".join(json.dumps(row) + "\n" for row in rows(4, 30)))
    return found


@pytest.fixture
def make(tmp_path: Path, policies: dict[str, Artifact], recipe: Recipe, files: dict[str, Path]) -> Any:
    def make(folder: str, report: Callable[[Progress], None] = lambda _: None) -> StageContext:
        for part in ("output", "checkpoints"):
            (tmp_path / folder / part).mkdir(parents=True, exist_ok=True)
        root = tmp_path / folder
        return stage_context("check", recipe, policies, files, root / "output", root / "checkpoints", report)

    return make


def test_what_counts_as_right_is_what_transformers_generates(
    make: Any, policies: dict[str, Artifact], recipe: Recipe
) -> None:
    heard: list[Progress] = []
    context = make("asked", heard.append)
    result = benchmark.run(BenchmarkStage.model_validate(STAGE), context)
    assert (heard[-1].step, heard[-1].total) == (120, 120)
    answered = read_records(context.output / "answers.jsonl", AnsweredQuestion)
    prompts = {prompt.id: prompt for prompt in read_records(context.output / "prompts.jsonl", Prompt)}
    assert len(answered) == 2 * 3 * 20
    right: dict[str, list[bool]] = {}
    pool = PolicyPool(policies["base"], recipe.run_settings())
    for one in answered:
        name = f"{one.model}.{one.task}.{one.form}"
        right.setdefault(name, []).append(one.right)
        if one.form == "voted":
            assert len(one.texts) == 3
            continue
        policy = pool.use(policies[one.model])
        chat = [message.model_dump() for message in prompts[one.prompt_id].messages]
        assert len(chat) == (1 if one.form == "plain" else 5)
        ids = policy.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        out = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6,
            eos_token_id=list(policy.stop_ids), pad_token_id=policy.tokenizer.pad_token_id,
        )  # fmt: skip
        said = policy.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert one.texts == (said,)
        first = next((word for word in said.split() if word in LABELS), None)
        assert (one.answer, one.right) == (first, first == one.wanted)
    for name, verdicts in right.items():
        assert result.metrics[f"right.{name}"] == pytest.approx(sum(verdicts) / 20)
        assert result.metrics[f"right.{name}.low"] < result.metrics[f"right.{name}.high"]


def test_it_goes_on_from_the_answers_it_has(make: Any) -> None:
    stage = BenchmarkStage.model_validate(STAGE)
    first, again = make("first"), make("again")
    benchmark.run(stage, first)
    kept = sorted(first.checkpoints.iterdir())
    for path in kept[::2]:
        shutil.copy(path, again.checkpoints / path.name)
    benchmark.run(stage, again)
    for name in ("benchmark.json", "answers.jsonl", "prompts.jsonl"):
        assert (first.output / name).read_bytes() == (again.output / name).read_bytes()


def test_votes_are_the_commonest_of_their_answers(make: Any) -> None:
    context = make("votes")
    benchmark.run(
        BenchmarkStage.model_validate(STAGE | {"forms": {"voted": {"votes": 5, "temperature": 1.5}}}), context
    )
    answered = read_records(context.output / "answers.jsonl", AnsweredQuestion)
    disagreeing = [one for one in answered if len(set(one.read)) > 1]
    assert disagreeing
    for one in answered:
        counts = [one.read.count(said) if said is not None else 0 for said in one.read]
        assert one.answer == (one.read[counts.index(max(counts))] if any(counts) else None)
    found = Benchmark.model_validate_json((context.output / "benchmark.json").read_text())
    assert found.form_differences == ()
    assert len(found.model_differences) == 1


@pytest.mark.parametrize(
    ("questions", "examples", "words"),
    [
        ([{"prompt": "a"}], rows(4), "q.jsonl:1:reference: no right answer"),
        (
            [{"prompt": "a", "reference": "pink"}],
            rows(4),
            "q.jsonl:1:reference: the right answer is none of the labels",
        ),
        (rows(5), rows(1, 30), "e.jsonl: 1 examples, and the form few shows 2"),
        (rows(5), [*rows(1), *rows(3, 30)], "e.jsonl:1: the question of row 1 of q.jsonl with its answer"),
        ([*rows(2), rows(1)[0]], rows(4, 30), "q.jsonl:3: the question of row 1 again"),
    ],
)
def test_wrong_files_are_said_in_one_line(
    questions: list[Any], examples: list[Any], words: str, tmp_path: Path, make: Any, recipe: Recipe,
    files: dict[str, Path],
) -> None:  # fmt: skip
    for path, given in zip(files.values(), (questions, examples), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in given))
    stage = BenchmarkStage.model_validate(STAGE)
    with pytest.raises(InputError) as raised:
        benchmark.run(stage, make("wrong"))
    [line] = str(raised.value).splitlines()
    assert words in line.replace(f"{tmp_path}/", "")
    checked = recipe.model_copy(update={"stages": {"check": stage}})
    by_path = {"q.jsonl": files["words.questions"], "e.jsonl": files["words.examples"]}
    _data, faults = read_data(checked, by_path)
    assert [str(fault) for fault in faults] == [line]
