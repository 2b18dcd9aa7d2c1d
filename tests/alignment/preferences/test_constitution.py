"""Critique and revision: what counts, what is left out and why, and where every pair comes from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignment.data.jsonl import read_records, write_records
from alignment.errors import InputError, StageError
from alignment.judges import openai_endpoint as endpoint_module
from alignment.judges.llm_judge import Reply
from alignment.judges.prompts import JudgePrompt
from alignment.judges.protocol import JudgeUsage
from alignment.preferences.ai_feedback_report import ConstitutionFigures
from alignment.preferences.principles import load_constitution
from alignment.recipe.recipe import Recipe
from alignment.recipe.run_settings import ModelSettings
from alignment.recipe.stages.feedback.ai_feedback import ConstitutionStage, Principle
from alignment.records import Artifact, Demonstration, Message, PreferencePair, Prompt, Response, Sampling
from alignment.stages.feedback.constitution import Revision, draw, run
from tests.alignment.judges.fake_server import Answer, FakeServer
from tests.contexts import stage_context

PRINCIPLES = [
    {"name": "short", "critique": "What is too long?", "revision": "Make it short."},
    {"name": "kind", "critique": "What is rude?", "revision": "Make it kind."},
]


@pytest.fixture
def server() -> Any:
    fake = FakeServer()
    yield fake
    fake.stop()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT", 0.01)


def sampled(folder: Path, texts: list[str]) -> Artifact:
    """One answer to each prompt."""
    prompts = [Prompt(id=f"p{n}", messages=(Message(role="user", content=f"What is {n}?"),)) for n in range(len(texts))]
    responses = [
        Response(
            id=f"r{n}", prompt_id=f"p{n}", text=text, model="m", sampling=Sampling(), seed=0, tokens=3, finished=True
        )
        for n, text in enumerate(texts)
    ]
    write_records(folder / "prompts.jsonl", prompts)
    write_records(folder / "responses.jsonl", responses)
    return Artifact(name="responses", kind="responses", version=1, digest="0", path=str(folder), key="k")


def stage(server: FakeServer, **changes: Any) -> ConstitutionStage:
    writer = {"endpoint": {"url": server.url, "model": "writer", "retries": 0, "concurrency": 1}}
    return stage_of(writer, **changes)


def stage_of(writer: dict[str, Any], **changes: Any) -> ConstitutionStage:
    return ConstitutionStage.model_validate(
        {"kind": "constitution", "responses": "responses", "principles": PRINCIPLES, "writer": writer, **changes}
    )


def context(folder: Path, settings: ConstitutionStage, texts: list[str], data: dict[str, Path] | None = None) -> Any:
    for part in ("output", "checkpoints", "kept"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    recipe = Recipe(name="r", seed=3, model=ModelSettings(base="b"), stages={"revisions": settings})
    inputs = {"responses": sampled(folder / "responses", texts)}
    return stage_context("revisions", recipe, inputs, data or {}, folder / "output", folder / "checkpoints",
                        kept=folder / "kept")  # fmt: skip


def last(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def test_a_revision_is_a_demonstration_and_is_preferred(server: FakeServer, tmp_path: Path) -> None:
    def behave(body: dict[str, Any], _number: int) -> Answer:
        turns = body["messages"]
        assert [turn["role"] for turn in turns][:3] == ["user", "assistant", "user"]
        if len(turns) == 3:  # the critique's request
            return Answer("It is too long.")
        assert turns[3]["content"] == "It is too long."
        return Answer(f"New: {turns[1]['content'].split()[0]}")

    server.behave = behave
    settings = stage(server)
    where = context(tmp_path, settings, ["One long answer.", "Two long answers.", "  "])
    result = run(settings, where)
    pairs = read_records(where.output / "pairs.jsonl", PreferencePair)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [
        ("New: One", "One long answer."), ("New: Two", "Two long answers.")
    ]  # fmt: skip
    assert {pair.rater_kind for pair in pairs} == {"constitution"}
    shown = read_records(where.output / "demonstrations.jsonl", Demonstration)
    assert [one.messages[-1].content for one in shown] == ["New: One", "New: Two"]
    revisions = read_records(where.output / "revisions.jsonl", Revision)
    drawn = [draw(settings.principles, one.response_id, 0, 3).name for one in revisions]
    assert [one.steps[0].principle for one in revisions] == drawn
    assert [one.source for one in shown] == [f"constitution: {name}" for name in drawn]
    assert {one.steps[0].critique for one in revisions} == {"It is too long."}
    assert {one.writer for one in revisions} == {"writer"}
    assert (result.metrics["pairs"], result.metrics["demonstrations"], result.metrics["responses"]) == (2, 2, 2)
    figures = ConstitutionFigures.model_validate_json((where.output / "constitution.json").read_text())
    assert sum(one.drawn for one in figures.principles) == sum(one.revised for one in figures.principles) == 2
    assert (figures.words_before, figures.words_after) == (3, 2)
    # Again: every answer is kept, and nothing is asked twice.
    asked = len(server.requests)
    run(settings, where)
    assert len(server.requests) == asked == 4


def test_what_cannot_be_used_is_counted_and_never_guessed(server: FakeServer, tmp_path: Path) -> None:
    cut = json.dumps({"choices": [{"message": {"content": "It was cut"}, "finish_reason": "length"}]}).encode()
    said = {
        "same": Answer("  the same\n answer "), "empty": Answer(" "), "cut": Answer(body=cut),
        "down": Answer(status=503), "good": Answer("A good answer."),
    }  # fmt: skip

    def behave(body: dict[str, Any], _number: int) -> Answer:
        if len(body["messages"]) == 3:
            return Answer("") if body["messages"][1]["content"] == "silent answer" else Answer("Hm.")
        return said[body["messages"][1]["content"].split()[1]]

    server.behave = behave
    texts = ["the same answer", "an empty answer", "a cut answer", "is down answer", "a good answer", "silent answer"]
    settings = stage(server)
    where = context(tmp_path, settings, texts)
    result = run(settings, where)
    notes = [one.steps[0].note for one in read_records(where.output / "revisions.jsonl", Revision)]
    assert notes == ["unchanged", "empty", "cut_off", "failed", "", "empty"]
    assert result.metrics["left_out.empty"] == 2
    assert result.metrics["left_out.unchanged"] == result.metrics["left_out.cut_off"] == 1
    assert result.metrics["left_out.failed"] == result.metrics["pairs"] == 1
    assert [p.chosen for p in read_records(where.output / "pairs.jsonl", PreferencePair)] == ["A good answer."]


def test_json_answers_are_read_strictly(server: FakeServer, tmp_path: Path) -> None:
    def behave(body: dict[str, Any], _number: int) -> Answer:
        fields = body["response_format"]["json_schema"]["schema"]["properties"]
        if "critique" in fields:
            return Answer('{"critique": "Too long."}')
        good = body["messages"][1]["content"].startswith("good")
        return Answer('{"revision": "Short."}' if good else 'Sure! {"revision": "Short."}')

    server.behave = behave
    settings = stage(server, json_answers=True)
    where = context(tmp_path, settings, ["good answer", "bad answer"])
    run(settings, where)
    assert [p.chosen for p in read_records(where.output / "pairs.jsonl", PreferencePair)] == ["Short."]
    [_good, bad] = read_records(where.output / "revisions.jsonl", Revision)
    assert bad.steps[0].note == "unparsable"


def test_rounds_go_on_from_the_last_good_revision(server: FakeServer, tmp_path: Path) -> None:
    def behave(body: dict[str, Any], _number: int) -> Answer:
        if len(body["messages"]) == 3:
            return Answer("Hm.")
        before = body["messages"][1]["content"]
        return Answer({"zero": "one", "one": "one", "first": "second", "second": ""}[before])

    server.behave = behave
    settings = stage(server, rounds=3)
    where = context(tmp_path, settings, ["zero", "first"])
    run(settings, where)
    steps = [
        [(step.revision, step.note) for step in one.steps]
        for one in read_records(where.output / "revisions.jsonl", Revision)
    ]
    # "one" stays as it is under other principles; after an empty answer nothing more is asked.
    assert steps == [[("one", ""), ("one", "unchanged"), ("one", "unchanged")], [("second", ""), ("", "empty")]]
    assert [p.chosen for p in read_records(where.output / "pairs.jsonl", PreferencePair)] == ["one", "second"]


def test_nothing_revised_ends_the_stage(server: FakeServer, tmp_path: Path) -> None:
    server.behave = lambda body, _number: Answer(body["messages"][1]["content"])
    settings = stage(server)
    with pytest.raises(StageError, match=r"none of the 2 responses was revised \(2 unchanged"):
        run(settings, context(tmp_path, settings, ["a b", "c d"]))


def test_principles_are_drawn_by_the_seed_alone() -> None:
    principles = [Principle(name=name, critique="c", revision="r") for name in ("a", "b", "c")]
    drawn = [draw(principles, f"r{n}", 0, 7).name for n in range(300)]
    assert drawn == [draw(principles, f"r{n}", 0, 7).name for n in range(300)]
    assert all(60 < drawn.count(name) < 140 for name in "abc")
    assert drawn != [draw(principles, f"r{n}", 1, 7).name for n in range(300)]


def test_a_constitutions_file(server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps({"name": "c", "principles": PRINCIPLES}))
    assert [one.name for one in load_constitution(path).principles] == ["short", "kind"]
    server.behave = lambda body, _number: Answer("Hm." if len(body["messages"]) == 3 else "New.")
    settings = stage(server, principles=[], constitution="c.yaml")
    where = context(tmp_path / "s", settings, ["old"], {"constitution": path})
    assert run(settings, where).metrics["pairs"] == 1
    path.write_text(json.dumps({"principles": [{"name": "x", "critique": "c"}], "rules": 1}))
    with pytest.raises(InputError) as error:
        load_constitution(path)
    assert {fault.field for fault in error.value.faults} >= {"principles.0.revision", "rules"}
    with pytest.raises(InputError, match="cannot be read"):
        load_constitution(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("changes", [{"principles": []}, {"constitution": "c.yaml"}, {"principles": PRINCIPLES * 2}])
def test_principles_are_given_once(server: FakeServer, changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="principles"):
        stage(server, **changes)


class Writer:
    """A writer of this process that breaks down when it is asked for the ``last`` time."""

    def __init__(self, last: int) -> None:
        self.tally, self.last, self.calls = JudgeUsage(), last, 0

    async def ask(self, questions: Sequence[JudgePrompt], /) -> list[Reply]:
        self.calls += 1
        if self.calls == self.last:
            raise OSError("the machine went away")
        self.tally.asked += len(questions)
        self.tally.prompt_tokens += sum(len(question.messages) for question in questions)
        self.tally.answer_tokens += 3 * len(questions)
        return [Reply(f"New: {question.messages[0].content}") for question in questions]


@pytest.mark.parametrize("last", [2, 3, 4, 5])
def test_what_a_stopped_stage_was_asked_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """70 responses in three blocks, two calls each: whenever it stops, the second try makes the artifact of one."""
    settings = stage_of({"model": "base"})
    made = []
    for name, writers in (("once", [Writer(0)]), ("twice", [Writer(last), Writer(0)])):
        where = context(tmp_path / name, settings, [f"Answer {n}." for n in range(70)])
        for writer in writers:
            monkeypatch.setattr("alignment.stages.feedback.constitution.build_writer", lambda *_, w=writer: (w, "base"))
            try:
                result = run(settings, where)
            except OSError:
                continue
        made.append(({path.name: path.read_bytes() for path in where.output.iterdir()}, result))
    assert made[0] == made[1]
    figures = json.loads(made[1][0]["constitution.json"])
    assert (figures["tally"]["asked"], figures["tally"]["answer_tokens"], result.tokens_sampled) == (140, 420, 420)
