"""Responses of several models under several principles: who is asked what, and what is left out."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.data.jsonl import read_records
from alignment.errors import StageError
from alignment.preferences.ai_feedback_report import SynthesisFigures
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.feedback.ai_feedback import SynthesisStage
from alignment.records import Artifact, Message, Prompt, Response
from alignment.stage import StageContext
from alignment.stages.feedback.synthesis import Origin, plan, run
from tests.alignment.judges.fake_server import Answer, FakeServer
from tests.contexts import stage_context

PRINCIPLES = {"brief": "Be brief.", "full": "Explain.", "plain": "Be plain."}
MakeContext = Callable[..., StageContext]
WORDS = "red blue green white black brown grey pink gold iron wood sand lake hill moon star".split()  # noqa: SIM905


@pytest.fixture
def server() -> Any:
    fake = FakeServer()
    yield fake
    fake.stop()


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=f"p{n}", messages=(Message(role="user", content=f"What is {n}?"),)) for n in range(count)]


def stage(**changes: Any) -> SynthesisStage:
    whole = {"kind": "synthesis", "models": ["base", "sft"], "principles": PRINCIPLES, "per_prompt": 4, **changes}
    return SynthesisStage.model_validate(whole)


def test_every_model_answers_each_prompt_before_one_does_twice() -> None:
    wanted = plan(stage(), prompts(60), seed=3)
    assert len(wanted) == 240
    for n in range(60):
        own = wanted[4 * n : 4 * n + 4]
        assert Counter(asked.model for asked in own) == {0: 2, 1: 2}
        assert len({asked.principle for asked in own[:3]}) == 3
        assert len({(asked.model, asked.principle) for asked in own}) == 4
    assert 20 < sum(asked.model == 0 for asked in wanted[::4]) < 40  # who comes first is drawn
    assert wanted == plan(stage(), prompts(60), seed=3)
    # As many models as principles: a round further, the principles have moved on.
    square = stage(models=["base", "sft", "dpo"], per_prompt=6)
    for n, own in enumerate([plan(square, prompts(9), seed=3)[6 * n : 6 * n + 6] for n in range(9)]):
        assert len({(asked.model, asked.principle) for asked in own}) == 6, n


def test_endpoints_answer_and_repeats_are_left_out(server: FakeServer, tmp_path: Path) -> None:
    def behave(body: dict[str, Any], _number: int) -> Answer:
        system, asked = (turn["content"] for turn in body["messages"])
        number = int("".join(filter(str.isdigit, asked)) or 0)
        if body["model"] == "copier":
            return Answer("always the very same long answer to it")
        if system == PRINCIPLES["full"]:
            return Answer(f"you ask: what is the meaning of thing number {number % 3}")
        return Answer(" ".join(WORDS[(number + 3 * k + len(system)) % len(WORDS)] for k in range(6)))

    server.behave = behave
    rows = [{"prompt": f"What is the meaning of thing number {n}?"} for n in range(12)]
    rows += [{"prompt": f"Explain {word} to a child of five years in three words"} for word in WORDS[:8]]
    rows += [{"prompt": "What is the meaning of thing number 3 ?"}]
    rows += [{"prompt": f"Say, what is the meaning of thing number {n}, {w}?"} for n in (4, 8) for w in ("Ada", "Bo")]
    # By their digests, the things number 4, 8, 9 and 10 are held out, and of the last four all but the last.
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    endpoints = [{"url": server.url, "model": name} for name in ("copier", "writer")]
    settings = stage(models=[], endpoints=endpoints, near_duplicate=0.9, sampling={"max_new_tokens": 9})
    recipe = Recipe.model_validate(
        {"name": "r", "seed": 3, "model": {"base": "b"}, "data": {"held_out": 0.3}, "stages": {"s": settings}}
    )
    for part in ("output", "checkpoints", "kept"):
        (tmp_path / part).mkdir()
    context = stage_context("s", recipe, {}, {"prompts": path}, tmp_path / "output", tmp_path / "checkpoints",
                           kept=tmp_path / "kept")  # fmt: skip
    result = run(settings, context)
    figures = SynthesisFigures.model_validate_json((context.output / "synthesis.json").read_text())
    kept = read_records(context.output / "responses.jsonl", Response)
    origins = read_records(context.output / "origins.jsonl", Origin)
    asked = read_records(context.output / "prompts.jsonl", Prompt)
    assert [one.response_id for one in origins] == [one.id for one in kept]
    assert {one.model for one in kept} == {one.model for one in origins} == {"copier", "writer"}
    assert set(Counter(one.prompt_id for one in kept)) <= {prompt.id for prompt in asked}
    by_prompt = [[one.text for one in kept if one.prompt_id == prompt.id] for prompt in asked]
    assert all(texts.count("always the very same long answer to it") <= 1 for texts in by_prompt)
    assert all(prompt.messages[0].role == "user" for prompt in asked)  # the principle is nobody's to train on
    assert {body["messages"][0]["role"] for body in server.requests} == {"system"}
    assert figures.checks[3].left_out == result.metrics["near_duplicate_responses"] > 0
    assert figures.checks[0].left_out == result.metrics["contaminated_prompts"] == 1
    assert sum(figures.models.values()) == sum(figures.principles.values()) == len(kept)
    asked_before = len(server.requests)
    run(settings, context)
    assert len(server.requests) == asked_before  # kept by content
    same = stage(models=[], endpoints=endpoints[:1], near_duplicate=0.9)
    with pytest.raises(StageError, match="no prompt has two different responses"):
        run(same, context)


def test_what_repeats_a_held_out_prompt_of_its_own_file_is_left_out(server: FakeServer, tmp_path: Path) -> None:
    """No prompt of data.prompts' held-out share is like the two that the file's prompts repeat, in part and whole."""
    server.behave = lambda body, number: Answer(f"{' '.join(WORDS[number % 7 : number % 7 + 5])} {number}")
    words = [f"word{n}" for n in range(40)]
    texts = [f"{' '.join(words[n : n + 9])}?" for n in range(0, 30, 10)] + [f"Name {word} now" for word in words]
    prompts, final = tmp_path / "prompts.jsonl", tmp_path / "final.jsonl"
    recipe = Recipe.model_validate(
        {"name": "r", "seed": 3, "model": {"base": "b"}, "data": {"held_out": 0.01}, "stages": {"s": {
            "kind": "synthesis", "models": ["base"], "principles": PRINCIPLES}}}
    )  # fmt: skip
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    repeats = [f"Well: {' '.join(words[:8])}", f"{' '.join(words[10:19])}?"]
    final.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in repeats))
    for part in ("output", "checkpoints", "kept"):
        (tmp_path / part).mkdir()
    settings = stage(models=[], endpoints=[{"url": server.url, "model": "writer"}], near_duplicate=0.9)
    context = stage_context("s", recipe, {}, {"prompts": prompts, "held_out_prompts": final}, tmp_path / "output",
                           tmp_path / "checkpoints", kept=tmp_path / "kept")  # fmt: skip
    result = run(settings, context)
    asked = {prompt.messages[0].content for prompt in read_records(context.output / "prompts.jsonl", Prompt)}
    assert result.metrics["contaminated_prompts"] == 2
    assert not asked & {texts[0], texts[1]}
    assert texts[2] in asked


def test_our_own_models_answer(base: Artifact, sft: Artifact, make_context: MakeContext, tmp_path: Path) -> None:
    settings = {"kind": "synthesis", "models": ["base", "sft"], "principles": PRINCIPLES, "per_prompt": 4,
                "sampling": {"temperature": 1.0, "max_new_tokens": 8}}  # fmt: skip
    context = make_context(tmp_path, "made", {"base": base, "sft": sft}, changes={"stages.made": settings})
    result = run(context.recipe.stages["made"], context)  # type: ignore[arg-type]
    kept = read_records(context.output / "responses.jsonl", Response)
    assert {one.model for one in kept} == {str(base.ref()), str(sft.ref())}
    assert result.metrics["responses"] == len(kept) > result.metrics["prompts"] > 0
    first = (context.output / "responses.jsonl").read_bytes()
    run(context.recipe.stages["made"], context)  # type: ignore[arg-type]  # from its checkpoints
    assert (context.output / "responses.jsonl").read_bytes() == first


def test_who_answers_is_named_once() -> None:
    with pytest.raises(ValueError, match="who answers"):
        stage(models=[])
    with pytest.raises(ValueError, match="the same name: base"):
        stage(models=["base", "base"])
