"""The stage that samples, where a reward model keeps the best of several."""

import pytest
import torch
from pydantic import ValidationError

from alignment.chat import render_prompt
from alignment.data.jsonl import read_records
from alignment.durable_files import folder_digest
from alignment.models.load import load_policy
from alignment.models.reward_model import new_reward_model, score
from alignment.recipe.stages.sample import SampleStage
from alignment.records import Prompt, Response
from alignment.stages.sample import run

STAGE = {"kind": "sample", "model": "base", "per_prompt": 2, "batch_size": 16,
         "sampling": {"max_new_tokens": 6, "temperature": 1.0}}  # fmt: skip


def test_the_kept_responses_score_higher_than_plain_ones(make_context, base, tmp_path):
    plain = make_context(tmp_path / "plain", "responses", {"base": base})
    torch.manual_seed(0)
    model, tokenizer = new_reward_model(base, base, plain.run)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    reward = replace_artifact(base, "reward", tmp_path / "reward")
    best = make_context(tmp_path / "best", "responses", {"base": base, "reward": reward})
    _, policy_tokenizer = load_policy(base, base, plain.run)
    means = {}
    for context, extra in ((plain, {}), (best, {"best_of": 4, "reward": "reward"})):
        result = run(SampleStage.model_validate(STAGE | {"limit": 6} | extra), context)
        assert result.metrics["responses"] == 12
        prompts = {prompt.id: prompt for prompt in read_records(context.output / "prompts.jsonl", Prompt)}
        responses = read_records(context.output / "responses.jsonl", Response)
        sequences = [
            render_prompt(policy_tokenizer, prompts[response.prompt_id].messages)
            + policy_tokenizer(response.text, add_special_tokens=False)["input_ids"]
            for response in responses
        ]
        scores = score(model.eval(), tokenizer, sequences)
        means[context.output.parent.name] = sum(scores) / len(scores)
    assert means["best"] > means["plain"]


def replace_artifact(artifact, name, folder):
    changes = {"name": name, "key": name, "path": str(folder), "digest": folder_digest(folder)}
    return artifact.model_copy(update=changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"best_of": 4},
        {"reward": "reward"},
        {"sampling": {"temperature": 0.0, "beams": 2}, "per_prompt": 3},
        {"sampling": {"temperature": 0.0, "beams": 2}, "best_of": 2, "reward": "reward"},
    ],
)
def test_settings_that_contradict_one_another_are_refused(changes):
    with pytest.raises(ValidationError):
        SampleStage.model_validate(STAGE | changes)
