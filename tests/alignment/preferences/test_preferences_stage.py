import json
from pathlib import Path
from statistics import fmean

import pytest

from alignment.data.jsonl import read_records, write_records
from alignment.errors import StageError
from alignment.recipe.raters import SimulatedRaters
from alignment.recipe.recipe import Recipe
from alignment.recipe.run_settings import ModelSettings
from alignment.recipe.stages.feedback.preferences import PreferencesStage
from alignment.records import Artifact, Comparison, Message, PreferencePair, Prompt, Response, Sampling, Vote
from alignment.stage import Progress, StageContext
from alignment.stages.feedback.preferences import run
from tests.contexts import stage_context

RUBRIC = Path(__file__).parents[3] / "flows" / "recipes" / "quickstart" / "rubric.yaml"
ANSWERS = {
    ("What is the capital of Norway?", "question_answering", "Oslo"): [
        "Oslo is the capital of Norway.",
        "Sure! The capital of Norway is Oslo. It lies on a fjord. Many people live there. It is cold in winter.",
        "Bergen is the capital of Norway.",
        "Yes.",
    ],
    ("What is 6 * 9?", "arithmetic", "54"): ["6 * 9 = 54", "It is 45.", "It is 45. ", "Nine. Nine. Nine. Nine."],
    ("Describe a stormy sea.", "writing", None): [
        "The stormy sea threw grey waves over the wall.",
        "Certainly! Here is a description. The sea is stormy. There are waves. It is wet. It is loud. It goes on",
    ],
}


def context(tmp_path: Path, answers: dict[tuple[str, str, str | None], list[str]]) -> StageContext:
    prompts, responses = [], []
    for i, ((text, kind, reference), given) in enumerate(answers.items()):
        messages = (Message(role="user", content=text),)
        prompts.append(Prompt(id=f"p{i}", messages=messages, kind=kind, reference=reference))
        responses += [
            Response(
                id=f"p{i}r{j}", prompt_id=f"p{i}", text=answer, model="m", sampling=Sampling(), seed=j, tokens=9,
                finished=answer.strip().endswith("."),
            )
            for j, answer in enumerate(given)
        ]  # fmt: skip
    sampled = tmp_path / "sampled"
    write_records(sampled / "prompts.jsonl", prompts)
    write_records(sampled / "responses.jsonl", responses)
    output, checkpoints = tmp_path / "output", tmp_path / "checkpoints"
    output.mkdir(parents=True, exist_ok=True)
    checkpoints.mkdir(exist_ok=True)
    return stage_context(
        name="preferences",
        recipe=Recipe(name="r", seed=3, model=ModelSettings(base="b"), stages={"preferences": settings()}),
        inputs={"sample": Artifact(name="sample", kind="responses", version=1, digest="0", path=str(sampled), key="k")},
        data={"rubric": RUBRIC},
        output=output,
        checkpoints=checkpoints,
    )


def settings(min_agreement: float = 0.5, count: int = 3, noise: float = 0.5) -> PreferencesStage:
    return PreferencesStage(
        kind="preferences",
        responses="sample",
        raters=SimulatedRaters(rubric="rubric.yaml", count=count, noise=noise),
        comparisons_per_prompt=6,
        min_agreement=min_agreement,
    )


def test_stage_writes_what_it_says(tmp_path: Path) -> None:
    given = context(tmp_path, ANSWERS)
    seen: list[Progress] = []
    given.report = seen.append
    result = run(settings(), given)
    comparisons = read_records(given.output / "comparisons.jsonl", Comparison)
    votes = read_records(given.output / "votes.jsonl", Vote)
    pairs = read_records(given.output / "pairs.jsonl", PreferencePair)
    assert len(comparisons) == 6 + 3 + 1  # two of the four answers to the sum are the same text
    assert len(votes) == 3 * len(comparisons)
    assert len({vote.id for vote in votes}) == len(votes)
    assert {vote.rater_kind for vote in votes} == {"simulated"}
    assert [(progress.step, progress.total) for progress in seen] == [(1, 3), (2, 3), (3, 3)]
    assert result.kind == "preferences"
    assert all(type(value) is float for value in result.metrics.values())
    metrics = result.metrics
    assert (metrics["comparisons"], metrics["votes"], metrics["pairs"]) == (10, 30, len(pairs))
    assert metrics["ties"] == sum(vote.strength == 0 for vote in votes)
    assert metrics["both_bad"] == sum(vote.outcome == "both_bad" for vote in votes)
    assert metrics["chosen_words"] == pytest.approx(fmean(len(pair.chosen.split()) for pair in pairs), abs=2)
    report = json.loads((given.output / "agreement.json").read_text("utf-8"))
    assert report["krippendorff_alpha"]["value"] == metrics["krippendorff_alpha"]
    assert report["krippendorff_alpha"]["low"] <= metrics["krippendorff_alpha"] <= 1
    assert given.work_seconds > 0


def test_raters_prefer_the_house_style(tmp_path: Path) -> None:
    given = context(tmp_path, ANSWERS)
    run(settings(noise=0.0), given)
    pairs = read_records(given.output / "pairs.jsonl", PreferencePair)
    assert all(pair.agreement == 1.0 and pair.margin for pair in pairs)
    best = {answers[0] for answers in ANSWERS.values()}
    assert {pair.chosen for pair in pairs} >= best
    assert not {pair.rejected for pair in pairs} & best
    assert "Yes." not in {pair.chosen for pair in pairs}


def test_same_inputs_give_the_same_files(tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        given = context(tmp_path / name, ANSWERS) if (tmp_path / name).mkdir() is None else None
        assert given is not None
        run(settings(), given)
        written.append({path.name: path.read_bytes() for path in given.output.iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) == {"comparisons.jsonl", "votes.jsonl", "pairs.jsonl", "agreement.json"}


def test_a_single_rater_has_no_alpha(tmp_path: Path) -> None:
    given = context(tmp_path, ANSWERS)
    result = run(settings(count=1), given)
    assert "krippendorff_alpha" not in result.metrics
    assert json.loads((given.output / "agreement.json").read_text("utf-8"))["krippendorff_alpha"]["value"] is None


def test_no_pairs_says_why_and_what_to_do(tmp_path: Path) -> None:
    key = ("What is 6 * 9?", "arithmetic", "54")
    same = context(tmp_path, {key: ["54", "54", "54 "]})
    with pytest.raises(StageError, match=r"two different answers.*higher temperature"):
        run(settings(), same)
    bad = context(tmp_path, {key: ["Yes.", "Why?"]})
    with pytest.raises(StageError, match=r"1 were called bad on both sides.*min_agreement"):
        run(settings(noise=0.0), bad)
    assert list(bad.output.iterdir()) == []


def test_responses_of_several_policies_meet(tmp_path: Path) -> None:
    """The answers of two sample stages to one prompt are compared with each other."""
    [question] = [given for given in ANSWERS if given[1] == "arithmetic"]
    good, bad = ({question: [answer]} for answer in ("6 * 9 = 54", "Nine. Nine. Nine. Nine."))
    first, second = context(tmp_path / "one", good), context(tmp_path / "two", bad)
    other = second.inputs["sample"]
    rows = [
        row.model_copy(update={"id": "other"}) for row in read_records(Path(other.path) / "responses.jsonl", Response)
    ]
    write_records(Path(other.path) / "responses.jsonl", rows)
    first.inputs = {"sample": first.inputs["sample"], "other": other}
    run(settings().model_copy(update={"responses": ("sample", "other")}), first)
    [pair] = read_records(first.output / "pairs.jsonl", PreferencePair)
    assert (pair.chosen, pair.rejected) == ("6 * 9 = 54", "Nine. Nine. Nine. Nine.")
