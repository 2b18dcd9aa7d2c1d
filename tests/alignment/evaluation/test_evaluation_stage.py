"""The stage on real tiny policies: an adapter that learned to be brief against a base that rambles."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment.chat import render_answer, render_prompt
from alignment.data.jsonl import read_records, write_records
from alignment.data.split import is_held_out
from alignment.durable_files import folder_digest
from alignment.errors import StageError
from alignment.evaluation.bootstrap import estimate
from alignment.evaluation.metric_names import evaluation_metric_names
from alignment.metrics.model_metrics import probe, reference_likelihoods
from alignment.metrics.results import EvaluatedPrompt, Evaluation
from alignment.recipe.metrics import with_kinds
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.records import Artifact, Prompt, Response
from alignment.rollouts.engine import Completion
from alignment.rollouts.policy_pool import PolicyPool
from alignment.stage import Progress, StageResult
from alignment.stages.evaluate import run
from tests.contexts import stage_context

RUBRIC = """
name: brief
criteria:
  - {name: few_words, text: It is short., measure: words, weight: 1, full_at_most: 2, zero_at: 12}
"""
Evaluate = Callable[..., tuple[StageResult, Path]]


@pytest.fixture
def evaluate(tmp_path: Path, policies: dict[str, Artifact], recipe: Recipe, prompts: list[Prompt]) -> Evaluate:
    rows = [{"prompt": p.messages[0].content, "kind": p.kind, "reference": p.reference} for p in prompts]
    data = {"prompts": tmp_path / "prompts.jsonl", "rubric": tmp_path / "rubric.yaml"}
    data["prompts"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    data["rubric"].write_text(RUBRIC)
    count = 0

    def run_stage(checkpoints: Path | None = None, **settings: Any) -> tuple[StageResult, Path]:
        nonlocal count
        count += 1
        output = tmp_path / f"output-{count}"
        checkpoints = checkpoints or tmp_path / f"checkpoints-{count}"
        for folder in (output, checkpoints):
            folder.mkdir(exist_ok=True)
        stage = EvaluateStage.model_validate(SETTINGS | settings)
        heard: list[Progress] = []
        context = stage_context("check", recipe, policies, data, output, checkpoints, heard.append)
        result = run(stage, context)
        assert heard[-1].step == heard[-1].total
        assert context.work_seconds > 0
        return result, output

    return run_stage


SETTINGS = {
    "kind": "evaluate",
    "model": "short",
    "against": ["base", "other"],
    "raters": {"rubric": "rubric.yaml", "noise": 0.2},
    "reward": "reward",
    "sampling": {"temperature": 0.0, "max_new_tokens": 10},
    "kl_prompts": 4,
}


def read(output: Path) -> tuple[Evaluation, list[EvaluatedPrompt]]:
    evaluation = Evaluation.model_validate_json((output / "evaluation.json").read_text())
    return evaluation, read_records(output / "samples.jsonl", EvaluatedPrompt)


def test_prompts_of_a_file_of_their_own_are_asked(
    policies: dict[str, Artifact], recipe: Recipe, tmp_path: Path
) -> None:
    """All of them, with their kinds and references, and nothing of data.prompts' held-out share."""
    asked = {"say gold gold": "gold", "say red so": None, "say then no": "no"}
    file, rubric = tmp_path / "final.jsonl", tmp_path / "rubric.yaml"
    rows = [{"prompt": text, "kind": "last"} | ({"reference": r} if r else {}) for text, r in asked.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rubric.write_text(RUBRIC)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"say blue {n}"}) + "\n" for n in range(40)))
    for part in ("output", "checkpoints"):
        (tmp_path / part).mkdir()
    stage = EvaluateStage.model_validate(SETTINGS | {"against": ["base"]})
    data = {"prompts": tmp_path / "prompts.jsonl", "held_out_prompts": file, "rubric": rubric}
    given = {name: data[name] for name in (*stage.data_files(data), "rubric")}
    context = stage_context("check", recipe, policies, given, tmp_path / "output", tmp_path / "checkpoints")
    run(stage, context)
    evaluation, samples = read(context.output)
    assert {sample.prompt[-1].content: sample.reference for sample in samples} == asked
    assert {sample.kind for sample in samples} == {"last"}
    assert evaluation.prompts == 3
    assert {rate.rate.n for rate in evaluation.win_rates} == {3}


def test_prompts_of_the_training_split_are_asked(policies: dict[str, Artifact], recipe: Recipe, tmp_path: Path) -> None:
    """None of the held-out share, and nothing of the held-out prompts' own file."""
    texts = [f"say blue {n}" for n in range(12)]
    file, own, rubric = tmp_path / "prompts.jsonl", tmp_path / "final.jsonl", tmp_path / "rubric.yaml"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    own.write_text(json.dumps({"prompt": "say gold"}) + "\n")
    rubric.write_text(RUBRIC)
    for part in ("output", "checkpoints"):
        (tmp_path / part).mkdir()
    stage = EvaluateStage.model_validate(SETTINGS | {"against": ["base"], "split": "train", "kl_prompts": 1})
    data = {"prompts": file, "held_out_prompts": own, "rubric": rubric}
    assert (stage.data_files(data), stage.asks_held_out()) == (("prompts",), False)
    given = {name: data[name] for name in (*stage.data_files(data), "rubric")}
    context = stage_context("check", recipe, policies, given, tmp_path / "output", tmp_path / "checkpoints")
    run(stage, context)
    asked = {sample.prompt[-1].content for sample in read(context.output)[1]}
    kept_back = {text for text in texts if is_held_out(text, context.run.held_out)}
    assert 0 < len(kept_back) < len(texts)
    assert asked == set(texts) - kept_back


def test_a_whole_evaluation(evaluate: Evaluate) -> None:
    result, output = evaluate()
    stage = EvaluateStage.model_validate(SETTINGS)
    evaluation, samples = read(output)
    assert result.kind == "evaluation"
    assert list(result.metrics) == evaluation_metric_names(stage)
    assert json.loads((output / "metrics.json").read_text()) == result.metrics
    # The adapter learned what the rubric asks for, and it shows.
    assert result.metrics["win_rate.base.rubric.low"] > 0.5
    assert result.metrics["length.short"] == pytest.approx(3)  # two words and EOS
    assert result.metrics["finished.short"] == 1.0
    assert result.metrics["kl"] > 0.5
    assert evaluation.prompts == len(samples) == len(evaluation.models["base"].lengths)
    assert list(evaluation.models) == ["short", "base", "other"]
    assert evaluation.judges["rubric"] == "3 simulated raters by the rubric brief"
    assert result.tokens_sampled > sum(sum(model.lengths) for model in evaluation.models.values())
    for won in evaluation.win_rates:
        outcomes = [sample.outcomes[won.opponent][won.judge] for sample in samples]
        assert won.rate.value == pytest.approx(sum(outcomes) / len(outcomes))
        assert sum(part.n for part in won.kinds.values()) == won.rate.n == len(samples)
    for sample in samples:
        mine, theirs = sample.rewards["short"], sample.rewards["base"]
        assert sample.outcomes["base"]["reward"] == (0.5 if mine == theirs else float(mine > theirs))
        assert sample.texts["short"].split()[0] == "yes"
    referenced = evaluation.models["short"].references
    assert referenced is not None
    assert referenced.n == sum(sample.reference is not None for sample in samples)


def test_the_same_again(evaluate: Evaluate, tmp_path: Path) -> None:
    _, first = evaluate()
    _, second = evaluate()
    assert folder_digest(first) == folder_digest(second)


def test_a_stopped_run_goes_on_from_the_answers_it_has(evaluate: Evaluate, tmp_path: Path) -> None:
    _, first = evaluate(checkpoints=tmp_path / "kept")
    answers = sorted((tmp_path / "kept").glob("answers-*.jsonl"))
    assert len(answers) == 3
    answers[0].unlink()
    changed = [r.model_copy(update={"text": "gold gold"}) for r in read_records(answers[1], Response)]
    write_records(answers[1], changed)
    _, second = evaluate(checkpoints=tmp_path / "kept")
    texts = {text for sample in read(second)[1] for text in sample.texts.values()}
    assert "gold gold" in texts  # taken from the checkpoint, not sampled again
    assert folder_digest(first) != folder_digest(second)


def test_a_model_against_itself_is_all_ties(evaluate: Evaluate) -> None:
    result, _ = evaluate(against=["short"], reference="short")
    assert result.metrics["win_rate.short.rubric.value"] == 0.5
    assert result.metrics["win_rate.short.reward.length_controlled"] == 0.5
    assert result.metrics["kl"] == 0.0


def test_limit_and_whole_weights(evaluate: Evaluate) -> None:
    result, output = evaluate(model="whole", against=["base"], raters=None, limit=5, kl_prompts=2)
    evaluation, samples = read(output)
    assert (len(samples), evaluation.kl.n) == (5, 2)
    assert [sample.outcomes["base"].keys() for sample in samples] == [{"reward"}] * 5
    assert result.metrics["kl"] > 0


def test_prompts_of_a_preference_file(
    tmp_path: Path, policies: dict[str, Artifact], recipe: Recipe, prompts: list[Prompt]
) -> None:
    folder = tmp_path / "preferences"
    folder.mkdir()
    write_records(folder / "prompts.jsonl", prompts[:3])
    brought = Artifact(name="pairs", kind="preferences", version=1, digest="0", path=str(folder), key="pairs")
    stage = EvaluateStage.model_validate(
        {"kind": "evaluate", "model": "short", "prompts": "pairs", "kl_prompts": 1, "sampling": {"max_new_tokens": 4}}
    )
    for name in ("output", "checkpoints"):
        (tmp_path / name).mkdir()
    inputs = policies | {"pairs": brought}
    context = stage_context("check", recipe, inputs, {}, tmp_path / "output", tmp_path / "checkpoints")
    result = run(stage, context)
    assert list(result.metrics) == evaluation_metric_names(stage)
    assert [sample.prompt_id for sample in read(tmp_path / "output")[1]] == ["0000", "0001", "0002"]


def test_no_prompts_is_said(tmp_path: Path, policies: dict[str, Artifact], recipe: Recipe) -> None:
    stage = EvaluateStage(kind="evaluate", model="short")
    context = stage_context("check", recipe, policies, {}, tmp_path, tmp_path)
    with pytest.raises(StageError, match="no prompts to ask"):
        run(stage, context)


def test_reward_functions_are_metrics(evaluate: Evaluate) -> None:
    rewards = [{"kind": "length", "at_most": 2, "name": "brief"}, {"kind": "repetition_penalty", "ngram": 1}]
    settings = {"raters": None, "reward": None, "rewards": rewards}
    result, output = evaluate(**settings)
    assert list(result.metrics) == evaluation_metric_names(EvaluateStage.model_validate(SETTINGS | settings))
    evaluation, samples = read(output)
    brief = [float(len(sample.texts["short"].split()) <= 2) for sample in samples]
    assert [sample.scores["short"]["brief"] for sample in samples] == brief
    assert result.metrics["reward.short.brief.value"] == pytest.approx(sum(brief) / len(brief))
    lead = result.metrics["reward.short.brief.value"] - result.metrics["reward.base.brief.value"]
    assert result.metrics["reward_lead.base.brief.value"] == pytest.approx(lead)
    assert result.metrics["reward_lead.base.brief.low"] > 0  # two words against ten tokens
    assert evaluation.metrics["other"]["repetition_penalty"].n == evaluation.prompts


METRICS = {
    "raters": None, "reward": None, "against": ["base"],
    "metrics": with_kinds([
        "bleu", "rouge", "exact_match", "perplexity", "length", "distinct", "repetition", "refusal", "profanity",
        "readability", {"kind": "classification", "labels": ["yes", "no"]}, {"kind": "pass_at_k", "k": 2, "samples": 3},
        {"kind": "length", "unit": "tokens", "name": "odd_tokens", "kinds": ["odd"]},
    ]),
}  # fmt: skip


def test_metrics_stand_with_intervals_on_all_prompts_and_on_slices(evaluate: Evaluate, tmp_path: Path) -> None:
    result, output = evaluate(checkpoints=tmp_path / "kept", **METRICS)
    stage = EvaluateStage.model_validate(SETTINGS | METRICS)
    assert list(result.metrics) == evaluation_metric_names(stage)
    found, samples = read(output)
    referenced = sum(sample.reference is not None for sample in samples)
    mine, theirs, lead = found.metrics["short"], found.metrics["base"], found.metric_leads["base"]
    assert list(mine) == [*found.better]
    assert (mine["bleu"].n, mine["length"].n, mine["perplexity"].n) == (referenced, len(samples), referenced)
    assert mine["odd_tokens"].n == sum(sample.kind == "odd" for sample in samples)
    assert mine["length"].value == pytest.approx(sum(len(s.texts["short"].split()) for s in samples) / len(samples))
    assert mine["perplexity"].value < theirs["perplexity"].value  # it learned to say "yes", and that is the reference
    assert lead["perplexity"].high < 0
    assert lead["length"].value == pytest.approx(mine["length"].value - theirs["length"].value)
    assert mine["accuracy"].value == 1.0  # every answer begins with "yes"
    assert mine["pass_at_2"].value == 0.0  # words are no program that passes the test `yes`
    assert "nrefs:1" in found.signatures["bleu"]
    kinds = {part.value: part for part in found.slices if part.by == "kind"}
    assert sum(part.n for part in kinds.values()) == len(samples)
    assert kinds["odd"].metrics["short"]["odd_tokens"].n == kinds["odd"].n
    assert "odd_tokens" not in kinds["even"].metrics["short"]
    assert [(one.text, one.n) for one in found.system_prompts] == [(None, len(samples))]
    assert set(found.templates) == {"short", "base"}
    for path in (tmp_path / "kept").glob("*.json"):  # what the models were asked is not asked again
        path.write_text(json.dumps([[0.0, 1]] * len(json.loads(path.read_text()))))
    again, _ = evaluate(checkpoints=tmp_path / "kept", **METRICS)
    assert again.metrics["metric.short.perplexity.value"] == 1.0
    assert again.metrics["metric.short.length.value"] == result.metrics["metric.short.length.value"]


def test_perplexity_is_the_models_own_loss(
    policies: dict[str, Artifact], recipe: Recipe, prompts: list[Prompt]
) -> None:
    """Against the loss that transformers computes itself, one conversation at a time."""
    asked = [
        prompt.model_copy(update={"reference": "yes red" if i % 2 else "no"}) for i, prompt in enumerate(prompts[:7])
    ]
    policy = PolicyPool(policies["base"], recipe.run_settings()).use(policies["short"])
    found = reference_likelihoods(policy, asked, batch_size=3)
    for prompt, (nats, tokens) in zip(asked, found, strict=True):
        ids = render_prompt(policy.tokenizer, prompt.messages)
        answer = render_answer(policy.tokenizer, prompt.messages, prompt.reference or "")
        labels = torch.tensor([[-100] * len(ids) + answer])
        loss = policy.model(input_ids=torch.tensor([ids + answer]), labels=labels).loss
        assert tokens == len(answer)
        assert nats / tokens == pytest.approx(float(loss), rel=1e-4)


class Scripted:
    """A policy that says what it is told to: the sampler's seam."""

    def __init__(self, tokenizer: Any, texts: list[str]) -> None:
        self.tokenizer, self.texts = tokenizer, texts

    def engine(self, _batch_size: int) -> Any:
        return self

    def generate(self, prompts: Any, *, sampling: Any, seeds: Any, per_prompt: int) -> list[list[Completion]]:
        assert sampling.temperature == 0.8
        assert len(set(seeds)) == len(prompts) * per_prompt
        said = iter(self.texts)
        return [[Completion((1,), next(said), True) for _ in range(per_prompt)] for _ in prompts]


def test_pass_at_k_runs_the_tests_of_each_prompt(
    policies: dict[str, Artifact], recipe: Recipe, prompts: list[Prompt], tmp_path: Path
) -> None:
    code = [
        prompts[1].model_copy(update={"reference": "assert double(3) == 6"}),
        prompts[2].model_copy(update={"kind": "x"}),
    ]
    right, wrong = "```python\ndef double(n):\n    return 2 * n\n```", "def double(n): return n"
    tokenizer = PolicyPool(policies["base"], recipe.run_settings()).tokenizer(policies["base"])
    policy: Any = Scripted(tokenizer, [right, wrong, "raise SystemExit(0)", right])
    stage = EvaluateStage.model_validate(SETTINGS | {"metrics": [
        {"kind": "pass_at_k", "k": k, "samples": 4, "seconds": 60, "kinds": ["odd"]} for k in (1, 2)
    ]})  # fmt: skip
    context = stage_context("check", recipe, policies, {}, tmp_path, tmp_path)
    found, tokens = probe(
        stage.metrics, context, lambda: policy, policies["base"], code, sampling=stage.sampling, batch_size=8
    )
    assert estimate(found["pass_at_1"]).value == 0.5  # two of four
    assert estimate(found["pass_at_2"]).value == pytest.approx(5 / 6)  # all pairs but the one of the two that fail
    assert estimate(found["pass_at_2"]).n == 1
    assert tokens == 4  # both count the same four
