"""Stages that put their prompts in a form: what the model is given, what the artifact keeps, and what others read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.data.jsonl import read_records
from alignment.judges.prompts import score, shots_of
from alignment.prompting.stage_prompts import PutPrompt, WrittenAnswers
from alignment.recipe.judges import GenerativeJudge, LabelProbabilitiesJudge
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.recipe.stages.sample import SampleStage
from alignment.records import Artifact, Message, Prompt, Response
from alignment.stages.evaluate import run as evaluate
from alignment.stages.sample import run as sample

SHOWN = [
    {"prompt": "Say the colour of snow.", "completion": "White."},
    {"prompt": "Say a number.", "completion": "Two."},
]
FORM = {"shots": 2, "examples": "shown.jsonl", "system": "You are brief."}
GREEDY = {"temperature": 0.0, "max_new_tokens": 5}


def context_of(make_context: Any, folder: Path, base: Artifact, stage: Any, name: str) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shown.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SHOWN))
    changes = {f"stages.{name}": stage.model_dump(mode="json"), "stages.sft": {"kind": "sft"}}
    context = make_context(folder, name, {"base": base}, changes=changes)
    if stage.prompting is not None and stage.prompting.examples is not None:
        context.data["prompting.examples"] = folder / "shown.jsonl"
    return context


def greedy(base: Artifact, question: str) -> str:
    """transformers' own answer to the prompt as it is written out by hand."""
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    model = AutoModelForCausalLM.from_pretrained(base.path).eval()
    turns = [("system", "You are brief."), ("user", "Say the colour of snow."), ("assistant", "White."),
             ("user", "Say a number."), ("assistant", "Two."), ("user", question)]  # fmt: skip
    text = "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns) + "<|im_start|>assistant\n"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        drawn = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=5)
    return str(tokenizer.decode(drawn[0, ids.shape[1] :], skip_special_tokens=True))


def test_a_policy_is_asked_in_the_form_and_learned_from_in_plain(
    make_context: Any, base: Artifact, tmp_path: Path
) -> None:
    stage = SampleStage.model_validate(
        {"kind": "sample", "per_prompt": 1, "limit": 4, "sampling": GREEDY, "prompting": FORM}
    )
    context = context_of(make_context, tmp_path, base, stage, "responses")
    result = sample(stage, context)
    prompts = {one.id: one for one in read_records(context.output / "prompts.jsonl", Prompt)}
    put = {one.prompt_id: one for one in read_records(context.output / "asked.jsonl", PutPrompt)}
    assert put.keys() == prompts.keys()
    assert all(len(one.messages) == 1 for one in prompts.values())
    for response in read_records(context.output / "responses.jsonl", Response):
        question = prompts[response.prompt_id].messages[0].content
        assert response.text == greedy(base, question)
        assert [message.content for message in put[response.prompt_id].messages] == [
            "You are brief.", "Say the colour of snow.", "White.", "Say a number.", "Two.", question,
        ]  # fmt: skip
    assert "unread" not in result.metrics


def test_votes_are_drawn_for_each_response_and_kept(make_context: Any, base: Artifact, tmp_path: Path) -> None:
    form = {"votes": 3, "keep": "answer", "temperature": 1.0, "system": "You are brief."}
    stage = SampleStage.model_validate(
        {"kind": "sample", "per_prompt": 2, "limit": 3, "batch_size": 7, "sampling": {"max_new_tokens": 4},
         "prompting": form}
    )  # fmt: skip
    context = context_of(make_context, tmp_path, base, stage, "responses")
    result = sample(stage, context)
    responses = read_records(context.output / "responses.jsonl", Response)
    written = {one.response_id: one for one in read_records(context.output / "written.jsonl", WrittenAnswers)}
    assert (len(responses), len(written)) == (6, 6)
    assert all(len(one.texts) == 3 for one in written.values())
    drawn = {text for one in written.values() for text in one.texts}
    assert len(drawn) > 6  # each vote has a seed of its own
    for one in responses:
        assert one.text in {text.strip() for text in written[one.id].texts} | {""}
    assert result.tokens_sampled >= sum(one.tokens for one in responses)


def test_an_evaluation_asks_everybody_in_the_form(make_context: Any, base: Artifact, tmp_path: Path) -> None:
    stage = EvaluateStage.model_validate(
        {"kind": "evaluate", "model": "base", "against": [], "kl_prompts": 1, "sampling": GREEDY, "prompting": FORM,
         "metrics": [{"kind": "refusal"}]}
    )  # fmt: skip
    context = context_of(make_context, tmp_path, base, stage, "evaluation")
    evaluate(stage, context)
    rows = [json.loads(line) for line in (context.output / "samples.jsonl").read_text().splitlines()]
    put = {one.prompt_id: one for one in read_records(context.output / "asked.jsonl", PutPrompt)}
    assert len(rows) == len(put) > 2
    for row in rows:
        [turn] = row["prompt"]  # judges and reports see the plain prompt
        assert row["texts"]["base"] == greedy(base, turn["content"])
        assert put[row["prompt_id"]].messages[-1].content == turn["content"]
    found = json.loads((context.output / "evaluation.json").read_text())
    assert found["prompting"]["shots"] == 2


EXAMPLES = [
    {"prompt": "Name a colour.", "answer": "Red.", "score": 9},
    {"prompt": "Name a bird of the sea.", "answer": "Gull.", "score": 8},
    {"prompt": "Count to three.", "answer": "1, 2, 3", "score": 7},
]


@pytest.mark.parametrize("kind", ["generative", "label_probabilities"])
def test_a_judge_is_shown_the_nearest_of_its_examples(kind: str, base: Artifact) -> None:
    settings = {"form": "score", "score_examples": EXAMPLES, "shots": 1, "choose": "nearest", "model": "base"}
    prompt = Prompt(id="p", messages=(Message(role="user", content="Which bird lives by the sea?"),))
    if kind == "generative":
        judge: Any = GenerativeJudge.model_validate({"kind": kind, **settings})
        asked = [message.content for message in score(judge, "Which bird lives by the sea?", "A gull.").messages]
        assert len(asked) == 4  # the judge's task, one example, its verdict, the question
        assert "Name a bird of the sea." in asked[1]
        assert json.loads(asked[2]) == {"score": 8}
    else:
        from alignment.judges.logprob_judge import LabelJudge

        judge = LabelProbabilitiesJudge.model_validate({"kind": kind, **settings})
        tokenizer = AutoTokenizer.from_pretrained(base.path)
        model = AutoModelForCausalLM.from_pretrained(base.path).eval()
        reader = LabelJudge(judge, model, tokenizer, "judge")
        text = tokenizer.decode(reader._rows(prompt, ("A gull.",)))
        assert "Name a bird of the sea." in text
        assert "Count to three." not in text
        alone = LabelJudge(judge.model_copy(update={"shots": None, "choose": "fixed", "score_examples":
                                                    judge.score_examples[1:2]}), model, tokenizer, "judge")  # fmt: skip
        [(mine, _mass)], [(other, _)] = (one._read([one._rows(prompt, ("A gull.",))]) for one in (reader, alone))
        assert mine == pytest.approx(other, abs=1e-4)  # what all questions begin with holds no example of another
    [row] = shots_of(judge, [prompt, prompt])
    assert [one.prompt for one in row.examples] == ["Name a bird of the sea."]


def test_without_shots_all_examples_are_shown() -> None:
    judge = GenerativeJudge.model_validate(
        {"kind": "generative", "model": "base", "form": "score", "score_examples": EXAMPLES}
    )
    assert len(score(judge, "x", "y").messages) == 8
    assert shots_of(judge, []) == []


@pytest.mark.parametrize("settings", [{"choose": "nearest"}, {"shots": 4}])
def test_a_judges_shots_fit_its_examples(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="shots"):
        GenerativeJudge.model_validate(
            {"kind": "generative", "model": "base", "form": "score", "score_examples": EXAMPLES, **settings}
        )
