"""The model card, read back by the library that hubs read it with."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from alignment.evaluation.gate import GateVerdict
from alignment.recipe.recipe import Recipe
from alignment.records import Artifact
from alignment.registry import Provenance, register
from alignment.workspace import Workspace
from tests.others_text import NASTY

Run = dict[str, Artifact]


@pytest.fixture
def card(
    workspace: Workspace,
    recipe: Recipe,
    provenance: Provenance,
    make_run: Callable[..., Run],
    judge: Callable[[Run], GateVerdict],
) -> ModelCard:
    run = make_run()
    version = register(workspace, recipe, run, "dpo", judge(run), provenance)
    return ModelCard.load(Path(version.folder) / "README.md")


def test_its_metadata_loads_back(card: ModelCard) -> None:
    assert card.data.library_name == "peft"
    assert card.data.license == "unknown"  # the tiny base has no card that says
    (result,) = card.data.eval_results or []
    assert result.metric_value == 0.8
    assert result.metric_config == "95% interval 0.700 to 0.850"
    assert "simulated raters" in (result.metric_name or "")


def test_held_out_prompts_of_their_own_are_named(
    workspace: Workspace,
    recipe: Recipe,
    provenance: Provenance,
    make_run: Callable[..., Run],
    judge: Callable[[Run], GateVerdict],
) -> None:
    data = recipe.data.model_copy(update={"held_out_prompts": "final.jsonl"})
    run = make_run()
    version = register(workspace, recipe.model_copy(update={"data": data}), run, "dpo", judge(run), provenance)
    text = ModelCard.load(Path(version.folder) / "README.md").text
    assert "held-out prompts from `final.jsonl`" in text
    assert "The held-out prompts are those of `final.jsonl`; on others the model may do worse." in text


def test_it_says_what_it_is_and_what_it_is_not(card: ModelCard) -> None:
    text = card.text
    assert "It wins 80% of held-out comparisons with base (95 % interval 70% to 85%)" in text
    assert "No person compared these answers." in text
    assert "The held-out prompts resemble the training prompts" in text
    assert "not how well people like it" in text
    assert "| base | simulated raters with the written rubric | 0.800 | 0.700 – 0.850 | 0.700 |" in text
    assert "**Passed.**" in text
    assert "win_rate.base.rubric.low = 0.7, must be above 0.5: passed by 0.2" in text
    assert "AutoPeftModelForCausalLM" in text
    for step in ("base@1", "sft@1", "votes@1", "reward@1", "dpo@1"):
        assert step in text
    assert "{{" not in text


def test_what_others_wrote_reads_as_it_is(
    workspace: Workspace,
    recipe: Recipe,
    provenance: Provenance,
    make_run: Callable[..., Run],
    judge: Callable[[Run], GateVerdict],
) -> None:
    """Kinds of prompts are in the names of a gate's metrics; a description, names of files and of the base are free."""
    run = make_run()
    verdict = judge(run)
    checks = tuple(verdict.checks[0].model_copy(update={"name": text}) for text, _shown in NASTY)
    described = recipe.model_copy(update={"description": "\n\n".join(text for text, _shown in NASTY[:18])})
    version = register(
        workspace, described, run, "dpo", verdict.model_copy(update={"checks": (*verdict.checks, *checks)}), provenance
    )
    tokens = MarkdownIt("commonmark").enable("table").parse(ModelCard.load(Path(version.folder) / "README.md").text)
    inline = [token for token in tokens if token.type == "inline"]
    said = ["".join(child.content for child in token.children or []) for token in inline]
    for text, shown in NASTY:
        assert any(line.startswith(f"{shown} = ") for line in said), text
    for text, shown in NASTY[:18]:
        assert shown in said, text
    assert not any(
        child.type in ("html_inline", "link_open", "image") for token in inline for child in token.children or []
    )
    assert not any(token.type == "html_block" for token in tokens)
