"""A stage that waits for people: its queue, its snapshot, and the stage that learns of them. No training, no server."""

import json
import math
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select

from alignment.checks.data import read_data
from alignment.data.jsonl import read_records, write_records
from alignment.errors import InputError, StageError
from alignment.recipe.files import resolve_data, with_absolute_data
from alignment.recipe.recipe import Recipe
from alignment.recipe.resolved import ResolvedRecipe
from alignment.recipe.stages.reward import RewardStage
from alignment.records import Artifact, Message, PreferencePair, Prompt, Response, Sampling
from alignment.stages.feedback import human_preferences as stage
from alignment.workspace import Workspace
from flows.pipeline import human_votes
from flows.pipeline.leaderboard_votes import human_games
from flows.pipeline.uncertainty_sampling import doubt, doubts
from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.voting import cast_vote
from preference_ui.store import schema
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store, now
from tests.contexts import stage_context

PROMPTS = 4


@pytest.fixture
def recipe() -> Recipe:
    return _recipe(votes_per_comparison=2, pairs=3, min_agreement=0.9)


def _recipe(**condition: Any) -> Recipe:
    stages = {
        "responses": {"kind": "sample", "per_prompt": 2},
        "people": {"kind": "human_preferences", "responses": "responses", **condition},
    }
    return Recipe.model_validate({"name": "loop", "model": {"base": "x"}, "stages": stages})


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Artifact]:
    """Two answers each to four prompts: "good" and "bad"."""
    folder = tmp_path / "responses"
    prompts = [
        Prompt(id=f"p{at}", messages=(Message(role="user", content=f"Q{at}?"),), kind="code") for at in range(PROMPTS)
    ]
    answers = [
        Response(id=f"{prompt.id}-{text}", prompt_id=prompt.id, text=f"{text} {prompt.id}", model="m",
                 sampling=Sampling(), seed=0, tokens=2, finished=True)
        for prompt in prompts
        for text in ("good", "bad")
    ]  # fmt: skip
    write_records(folder / "prompts.jsonl", prompts)
    write_records(folder / "responses.jsonl", answers)
    return {"responses": Artifact(name="responses", kind="r", version=1, digest="d1", path=str(folder), key="k")}


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("RLHF_STORE", raising=False)
    return Workspace(tmp_path / "workspace")


def vote(space: Workspace, rater: str, *, against: str = "bad", at_most: int = 100) -> int:
    """A rater who prefers what is not ``against`` votes on all there is. Returns how many votes that were."""
    store = Store.open(human_votes.store_url(space))
    with store.write() as connection:
        row = {"id": rater, "name": rater, "role": "rater", "state": "active", "created": now(), "guidelines_read": 9,
               "trial_passed": True}  # fmt: skip
        if connection.execute(select(schema.accounts.c.id).where(schema.accounts.c.id == rater)).first() is None:
            connection.execute(insert(schema.accounts).values(row))
    cast = 0
    while cast < at_most and (lease := next_lease(store, rater)) is not None:
        texts = {one.id: one.text for one in lease.comparison.responses}
        first_is_worse = texts[lease.order[0]].startswith(against)
        cast_vote(store, rater, lease.id, {"outcome": "ranked", "strength": 2 if first_is_worse else -2})
        cast += 1
    store.close()
    return cast


def test_votes_come_back_as_pairs_once_there_are_enough(
    recipe: Recipe, made: dict[str, Artifact], space: Workspace
) -> None:
    human_votes.queue_for_raters("people", recipe, made, space)
    human_votes.queue_for_raters("people", recipe, made, space)  # a run that is started again queues nothing twice
    assert human_votes.collected("people", recipe, made, space, {}) is None
    assert vote(space, "ada") == PROMPTS
    assert human_votes.collected("people", recipe, made, space, {}) is None  # one vote each, and two are wanted
    assert vote(space, "bob") == PROMPTS

    data = human_votes.collected("people", recipe, made, space, {})
    assert data is not None
    context = stage_context(
        name="people", recipe=recipe, inputs=made, data=data, output=space.folder("out"), checkpoints=space.folder("c")
    )
    result = stage.run(recipe.stages["people"], context)  # type: ignore[arg-type]
    pairs = read_records(context.output / "pairs.jsonl", PreferencePair)
    assert [pair.chosen.split()[0] for pair in pairs] == ["good"] * PROMPTS
    assert {(pair.margin, pair.raters, pair.agreement, pair.rater_kind, pair.kind) for pair in pairs} == {
        (2.0, 2, 1.0, "human", "code")
    }
    assert {name: result.metrics[name] for name in ("raters", "votes", "comparisons", "pairs", "agreement")} == {
        "raters": 2, "votes": 8, "comparisons": 4, "pairs": 4, "agreement": 1.0,
    }  # fmt: skip
    said = json.loads((context.output / "agreement.json").read_text())
    assert said["digest"] == json.loads(data["collection"].read_text())["digest"]


def test_a_recipe_may_ask_for_a_qualification(made: dict[str, Artifact], space: Workspace, tmp_path: Path) -> None:
    """Its questions are the trial, and who has too few of them right gets no work."""
    questions = tmp_path / "questions.jsonl"
    rows = [{"prompt": f"{at} + 1?", "chosen": f"good {at + 1}", "rejected": "bad 7"} for at in range(3)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = _recipe(pairs=1, qualification={"questions": "questions.jsonl", "pass_mark": 1.0})
    for _ in range(2):  # a run that is started again asks nothing twice
        human_votes.queue_for_raters("people", asked, made, space, {"questions.jsonl": questions})
    store = Store.open(human_votes.store_url(space))
    with store.read() as connection:
        trials = select(schema.comparisons.c.expected).where(schema.comparisons.c.purpose == "trial")
        assert len(connection.execute(trials).all()) == 3
    assert store.settings()[1].pass_mark == 1.0
    with store.write() as connection:
        for name in ("careful", "careless"):
            row = {"id": name, "name": name, "role": "rater", "state": "active", "created": now(),
                   "guidelines_read": 9, "trial_passed": False}  # fmt: skip
            connection.execute(insert(schema.accounts).values(row))
    store.close()
    assert vote(space, "careless", against="good") == 3  # the questions, and nothing after them
    assert vote(space, "careful") == 3 + PROMPTS


def test_a_recipe_may_ask_for_consent_and_about_the_rater(made: dict[str, Artifact], space: Workspace) -> None:
    age = {"name": "age", "text": "How old are you?", "choices": ["under 30", "30 or more"]}
    asked = _recipe(pairs=1, consent="We keep your votes.", questions=[age])
    for _ in range(2):
        human_votes.queue_for_raters("people", asked, made, space)
    store = Store.open(human_votes.store_url(space))
    version, settings = store.settings()
    assert (version, settings.consent) == (1, "We keep your votes.")
    assert [question.model_dump(mode="json") for question in settings.questions] == [age]
    store.close()
    assert vote(space, "ada") == 0  # nobody works who has not agreed
    assert asked.stages["people"].counted() == _recipe(pairs=1).stages["people"].counted()
    with pytest.raises(ValueError, match="the same name"):
        _recipe(questions=[age, age])


def test_the_questions_of_a_qualification_are_checked(tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"prompt": "Why?", "responses": ["a", "b"]}) + "\n")
    asked = _recipe(qualification={"questions": "questions.jsonl"})
    _data, faults = read_data(asked, resolve_data(asked, tmp_path / "recipe.yaml"))
    assert [(one.file, one.row) for one in faults] == [(str(questions), 1)]
    assert "which answer is better" in faults[0].problem
    absolute = with_absolute_data(asked, {"questions.jsonl": questions})
    assert absolute.stages["people"].qualification.questions == str(questions)  # type: ignore[attr-defined]
    plain = _recipe()
    assert asked.stages["people"].counted() == plain.stages["people"].counted()  # what it teaches is the votes


def test_a_snapshot_is_taken_once_and_a_run_for_another_is_refused(
    recipe: Recipe, made: dict[str, Artifact], space: Workspace
) -> None:
    human_votes.queue_for_raters("people", recipe, made, space)
    vote(space, "ada")
    assert vote(space, "bob", at_most=3) == 3
    first = human_votes.collected("people", recipe, made, space, {})
    assert first is not None
    before = first["snapshot"].read_bytes()
    assert vote(space, "bob") == 1
    assert human_votes.collected("people", recipe, made, space, {}) == first
    assert first["snapshot"].read_bytes() == before
    queue = human_votes.queue_name("people", recipe, made["responses"])
    with pytest.raises(StageError, match="was started for snapshot"):
        human_votes.collected("people", recipe, made, space, {queue: "0" * 64})
    first["snapshot"].write_bytes(before[: before.index(b"\n") + 1])
    context = stage_context(
        name="people", recipe=recipe, inputs=made, data=first, output=space.folder("o"), checkpoints=space.folder("c")
    )
    with pytest.raises(InputError, match="no longer"):
        stage.run(recipe.stages["people"], context)  # type: ignore[arg-type]


def test_raters_who_disagree_make_no_pair_and_a_looser_condition_keeps_their_votes(
    recipe: Recipe, made: dict[str, Artifact], space: Workspace
) -> None:
    human_votes.queue_for_raters("people", recipe, made, space)
    vote(space, "ada")
    vote(space, "bob", against="good")
    assert human_votes.collected("people", recipe, made, space, {}) is None
    stricter = _recipe(votes_per_comparison=3, pairs=3, min_agreement=0.6)
    human_votes.queue_for_raters(
        "people", stricter, made, space
    )  # the same answers: the same queue, one vote more each
    assert vote(space, "eve") == PROMPTS
    data = human_votes.collected("people", stricter, made, space, {})
    assert data is not None
    assert json.loads(data["collection"].read_text())["votes"] == 12


def test_other_answers_are_another_queue_and_another_recipes_queue_is_not_its_own(
    recipe: Recipe, made: dict[str, Artifact]
) -> None:
    other = {"responses": made["responses"].model_copy(update={"digest": "d2"})}
    names = [human_votes.queue_name("people", recipe, one["responses"]) for one in (made, other)]
    assert len(set(names)) == 2
    longer = recipe.model_copy(update={"name": "loop-2"})
    assert not human_votes.queue_name("people", longer, made["responses"]).startswith(human_votes.queue_prefix(recipe))


def test_more_pairs_than_comparisons_are_refused_at_once(made: dict[str, Artifact], space: Workspace) -> None:
    with pytest.raises(InputError, match="5 pairs are wanted"):
        human_votes.queue_for_raters("people", _recipe(votes_per_comparison=1, pairs=5), made, space)


def test_doubt_by_hand() -> None:
    assert doubt([0.0]) == 1.0
    assert doubt([math.log(3)]) == pytest.approx(0.75)  # p = 3/4
    assert doubt([2000.0]) == pytest.approx(0.0)


def test_the_doubt_of_several_models_is_what_they_contradict_each_other_about() -> None:
    nine_to_one = 0.4689955935892812  # bits of a coin of 0.9
    assert doubt([math.log(9), -math.log(9)]) == pytest.approx(1 - nine_to_one)
    assert doubt([0.0, 0.0, 0.0]) == pytest.approx(0.0)  # each expects a toss-up: a vote settles nothing
    assert doubt([math.log(9)] * 2) == pytest.approx(0.0)
    assert doubt([2000.0, -2000.0]) == pytest.approx(1.0)


@pytest.mark.parametrize("models", [1, 3])
def test_what_the_reward_models_doubt_is_asked_first(
    models: int, recipe: Recipe, made: dict[str, Artifact], space: Workspace, make_model: Callable[..., Path]
) -> None:
    """Real, untrained reward models in the workspace, as a round before would have left them."""
    stages = {
        f"reward_{at}": RewardStage.model_validate({"kind": "reward", "preferences": "people", "seed": at})
        for at in range(models)
    }
    model = recipe.model.model_copy(update={"dtype": "float32"})
    recipe = recipe.model_copy(update={"stages": {**recipe.stages, **stages}, "model": model})
    assert doubts("people", recipe, [], space) == {}
    policy = make_model(space.folder("tiny"))
    for at, name in enumerate(stages):
        output = space.folder("partial", name)
        _reward_model(policy, output, seed=at)
        draft = Artifact(name=name, kind="reward_model", version=0, digest="d", path="", key=f"k{at}")
        space.publish(draft, output)
    human_votes.queue_for_raters("people", recipe, made, space)
    store = Store.open(human_votes.store_url(space))
    with store.read() as connection:
        rows = connection.execute(select(schema.comparisons.c.id, schema.comparisons.c.informativeness)).all()
    weights = {row.id: row.informativeness for row in rows if row.id != "trial-1"}
    assert len(weights) == PROMPTS
    assert len(set(weights.values())) == PROMPTS
    assert all(0 < weight <= 1 for weight in weights.values())
    most = DeskSettings(policy="most_informative", gold_share=0, repeat_share=0, random_share=0, trial_required=False)
    store.change_settings(most, author="test")
    vote(space, "ada", at_most=0)
    asked = []
    while (lease := next_lease(store, "ada")) is not None:
        asked.append(lease.comparison.id)
        cast_vote(store, "ada", lease.id, {"outcome": "both_bad"})
    assert asked == sorted(weights, key=lambda name: -weights[name])
    store.close()


def _reward_model(policy: Path, output: Path, *, seed: int) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        policy, num_labels=1, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def test_a_recipes_criteria_are_asked_about_and_a_later_change_of_the_desk_stands(
    made: dict[str, Artifact], space: Workspace
) -> None:
    plain = _recipe(pairs=3)
    stage_of = plain.stages["people"].model_copy(update={"criteria": {"warm": "1: cold; 3: polite; 5: kind."}})
    recipe = plain.model_copy(update={"stages": {**plain.stages, "people": stage_of}})
    human_votes.queue_for_raters("people", recipe, made, space)
    store = Store.open(human_votes.store_url(space))
    version, desk = store.settings()
    assert [(one.name, one.rubric) for one in desk.criteria] == [("warm", "1: cold; 3: polite; 5: kind.")]
    store.change_settings(desk.model_copy(update={"criteria": ()}), author="root")
    human_votes.queue_for_raters("people", recipe, made, space)
    assert store.settings()[1].criteria == ()
    assert store.settings()[0] == version + 1
    store.close()


@pytest.mark.parametrize("name", ["Warm", "", "w" * 25, "a b"])
def test_a_criterion_has_a_name_that_the_desk_can_keep(name: str) -> None:
    with pytest.raises(ValueError, match="criteria"):
        _recipe(pairs=3, criteria={name: "1: no; 5: yes."})  # type: ignore[arg-type]


def test_votes_that_were_ready_while_nobody_listened_are_found_until_a_run_heard_them(
    recipe: Recipe, made: dict[str, Artifact], space: Workspace
) -> None:
    human_votes.queue_for_raters("people", recipe, made, space)
    resolved = ResolvedRecipe(recipe=recipe, path=space.root / "recipe.yaml", data={}, precision="auto")
    human_votes.remember_waiting("people", resolved, made, space)
    queue = human_votes.queue_name("people", recipe, made["responses"])
    assert human_votes.unheard(recipe, space) == {}  # votes are missing
    vote(space, "ada")
    vote(space, "bob")
    snapshot = human_votes.unheard(recipe, space)
    assert list(snapshot) == [queue]
    other = recipe.model_copy(update={"name": "loop-two"})
    assert human_votes.unheard(other, space) == {}
    human_votes.heard(space, queue).write_text(snapshot[queue] + "\n")
    assert human_votes.unheard(recipe, space) == {}


def test_votes_that_are_there_are_read_while_somebody_writes(
    recipe: Recipe, made: dict[str, Artifact], tmp_path: Path
) -> None:
    """A report, or a run past the stage, waits for no writer; who has to write says which store is locked."""
    workspace = Workspace(tmp_path / "workspace")
    human_votes.queue_for_raters("people", recipe, made, workspace)
    path, other = workspace.root / "raters" / "votes.db", recipe.model_copy(update={"seed": 1})
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        assert [one.wanted for one in human_votes.standings(workspace)]
        assert human_games(workspace) == []
        assert time.monotonic() - began < 5
        with (
            pytest.raises(StageError, match=rf"raters' store {path} cannot be used now: .*database is locked"),
            human_votes.naming_the_store(workspace),
        ):
            human_votes.queue_for_raters("people", other, made, workspace)
