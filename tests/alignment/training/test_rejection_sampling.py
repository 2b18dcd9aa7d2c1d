"""Rejection sampling: which responses become demonstrations, and that SFT learns from them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.data.jsonl import read_records, write_records
from alignment.errors import StageError
from alignment.records import Artifact, Demonstration, Message, Prompt, Response, Sampling
from alignment.stage import StageContext
from alignment.stages.feedback.rejection_sampling import best, run
from tests.alignment.conftest import artifact_of

MakeContext = Callable[..., StageContext]
ASKED = ("Who?", "Why?")
TEXTS = {  # two words cost nothing, each further word a tenth
    "Who?": ["the cat and the dog and the owl", "the cat", "the cat", "an owl", "cut"],
    "Why?": ["who saw it and named it today in one word", "the owl saw it all today"],
}


@pytest.fixture
def responses(tmp_path: Path) -> Artifact:
    folder = tmp_path / "responses"
    folder.mkdir()
    prompts = [Prompt(id=asked, messages=(Message(role="user", content=asked),), kind="short") for asked in ASKED]
    rows = [
        Response(
            id=f"{asked}{place}", prompt_id=asked, text=text, model="sft@1", sampling=Sampling(), seed=place,
            tokens=len(text.split()), finished=text != "cut",
        )
        for asked in ASKED for place, text in enumerate(TEXTS[asked])
    ]  # fmt: skip
    write_records(folder / "prompts.jsonl", prompts)
    write_records(folder / "responses.jsonl", rows)
    return artifact_of("responses", "responses", folder)


@pytest.fixture
def stage(base: Artifact, responses: Artifact, make_context: MakeContext, tmp_path: Path) -> Any:
    def make(**settings: Any) -> StageContext:
        given = {
            "kind": "rejection_sampling", "responses": "responses",
            "rewards": [{"kind": "length_penalty", "unit": "words", "free": 2, "full": 12}], **settings,
        }  # fmt: skip
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return make_context(folder, "chosen", {"base": base, "responses": responses}, changes={"stages.chosen": given})

    return make


def chosen(context: StageContext) -> tuple[dict[str, float], list[tuple[str, str]]]:
    result = run(context.recipe.stages["chosen"], context)  # type: ignore[attr-defined]
    rows = read_records(context.output / "demonstrations.jsonl", Demonstration)
    return result.metrics, [(row.messages[0].content, row.messages[-1].content) for row in rows]


def test_the_best_response_to_each_prompt_is_kept(stage: Any) -> None:
    """Of equals the first; what was cut off and what repeats is not chosen from."""
    metrics, found = chosen(stage())
    assert found == [("Who?", "the cat"), ("Why?", "the owl saw it all today")]
    assert (metrics["responses"], metrics["cut_off"], metrics["repeated"]) == (7, 1, 1)
    assert (metrics["demonstrations"], metrics["prompts_without"]) == (2, 0)
    assert metrics["reward"] > metrics["reward_of_all"]


def test_more_are_kept_and_a_floor_leaves_prompts_out(stage: Any) -> None:
    _metrics, found = chosen(stage(keep=2))
    assert found[:2] == [("Who?", "the cat"), ("Who?", "an owl")]
    metrics, found = chosen(stage(keep=2, above=-0.01))
    assert found == [("Who?", "the cat"), ("Who?", "an owl")]
    assert metrics["prompts_without"] == 1
    with pytest.raises(StageError, match="no response has a reward above 1; the best has 0: lower above"):
        chosen(stage(above=1))


def test_the_best_by_hand() -> None:
    def one(name: str) -> Response:
        return Response(id=name, prompt_id="", text=name, model="", sampling=Sampling(), seed=0, tokens=1)

    group = [(0.5, one("a")), (2.0, one("b")), (2.0, one("c")), (-1.0, one("d"))]
    assert [response.id for _reward, response in best(group, 3, 0.5)] == ["b", "c"]
    assert [response.id for _reward, response in best(group, 1, float("-inf"))] == ["b"]


def test_sft_learns_from_what_a_stage_has_made(
    stage: Any, base: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    from alignment.stages.sft import run as imitate

    context = stage()
    chosen(context)
    made = artifact_of("chosen", "demonstrations", context.output)
    folder = tmp_path / "imitated"
    given = {"kind": "rejection_sampling", "responses": "responses", "rewards": [{"kind": "length", "at_most": 2}]}
    again = make_context(
        folder, "sft", {"base": base, "chosen": made}, settings={"demonstrations": "chosen"},
        changes={"stages.chosen": given},
    )  # fmt: skip
    again.data = {}  # no file of the recipe's
    result = imitate(again.recipe.stages["sft"], again)  # type: ignore[attr-defined]
    assert result.metrics["demonstrations"] == 2
