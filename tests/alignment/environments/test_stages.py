"""GRPO, RLOO and an evaluation with an environment, on the tiny model: figures, traces, restarts."""

import json
import shutil
from statistics import mean

import pytest

from alignment.data.jsonl import read_records
from alignment.durable_files import folder_digest
from alignment.errors import StageError
from alignment.metrics.results import EvaluatedPrompt, Evaluation
from alignment.stage import Progress
from alignment.stages import evaluate, grpo

OWN = '''
import random

class Twice:
    """Wants an answer, and by its seed another; the last brings its length, and what was drawn by the seed."""

    def __init__(self, scale=1.0):
        self.scale, self.answers = scale, 0

    def reset(self, prompt, seed):
        self.drawn = random.Random(seed).random()

    def step(self, answer):
        if answer == "FAIL":
            raise ValueError
        self.answers += 1
        if self.answers == 1 and self.drawn < 0.5:
            return "Name the owl in one word.", False, 0.0
        return f"Thanks, {self.drawn:.3f}", True, self.scale * len(answer) + self.drawn
'''
STAGE = {"kind": "grpo", "model": "sft", "steps": 3, "episodes": 8, "per_prompt": 4, "batch_size": 4,
         "sampling": {"max_new_tokens": 16, "temperature": 0.2}, "learning_rate": 1e-3, "checkpoint_every": 1,
         "warmup": 0.0, "rewards": [], "lora": {"rank": 4, "alpha": 8}}  # fmt: skip


class Died(BaseException):
    """Ends a stage in the middle."""


@pytest.fixture
def environment(tmp_path):
    (tmp_path / "own.py").write_text(OWN, "utf-8")
    return {"kind": "python", "class_path": f"{tmp_path}/own.py:Twice", "max_turns": 3, "max_tokens": 90,
            "role": "user", "options": {"scale": 0.5}}  # fmt: skip


@pytest.fixture
def train(base, sft, make_context, environment, tmp_path):
    def train(folder="run", die_at=None, environment=environment, **changes):
        shutil.rmtree(tmp_path / folder / "output", ignore_errors=True)

        def report(progress: Progress) -> None:
            if progress.step == die_at:
                raise Died

        settings = STAGE | {"environment": environment} | changes
        context = make_context(
            tmp_path / folder, "policy", {"base": base, "sft": sft}, settings=settings, report=report
        )
        context.data["environment:Twice"] = tmp_path / "own.py"
        try:
            return grpo.run(context.recipe.stages["policy"], context), context
        except Died:
            return None, context

    return train


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_the_figures_of_a_step_are_those_of_its_episodes(kind, train):
    result, context = train(kind=kind)
    curves = result.curves
    ended = []
    for step in (1, 3):
        rows = json.loads((context.output / "samples" / f"step-{step:06d}.json").read_text("utf-8"))
        assert len(rows) == 8
        ended += [row for row in rows if row["finished"]]
        for row in rows:
            said = [turn for turn in row["turns"] if turn["role"] == "assistant"]
            assert row["turns"][0]["role"] == "assistant"
            assert row["answer"] == said[-1]["content"]
            assert row["score"] == pytest.approx(sum(turn["reward"] or 0.0 for turn in row["turns"]))
            assert row["rewards"] == {"environment": pytest.approx(row["score"])}
        for row in ended:
            last, thanks = row["turns"][-2:]
            assert thanks["role"] == "user"
            drawn = float(thanks["content"].removeprefix("Thanks, "))
            assert last["reward"] == pytest.approx(0.5 * len(last["content"]) + drawn, abs=1e-3)
            assert len(row["turns"]) == (4 if drawn < 0.5 else 2)
        # The environments of one prompt's answers are alike.
        for group in (rows[:4], rows[4:]):
            assert len({row["turns"][-1]["content"] for row in group if row["finished"]}) <= 1
        assert curves["reward.environment"][step - 1][1] == pytest.approx(mean(row["score"] for row in rows), abs=1e-5)
        assert curves["length"][step - 1][1] == pytest.approx(mean(row["tokens"] for row in rows))
        answers = [sum(turn["role"] == "assistant" for turn in row["turns"]) for row in rows]
        assert curves["turns"][step - 1][1] == pytest.approx(mean(answers))
    assert ended
    assert result.tokens_sampled == sum(round(8 * length) for _step, length in curves["length"])


def test_the_weighted_sum_of_an_episode(train):
    weighed = {"kind": "length", "unit": "characters", "at_most": 8, "weight": 2.0, "name": "short"}
    environment = {"kind": "calculator", "weight": 0.5, "max_turns": 2, "max_tokens": 40}
    _result, context = train(steps=1, rewards=[weighed], environment=environment)
    rows = json.loads((context.output / "samples" / "step-000001.json").read_text("utf-8"))
    for row in rows:
        assert row["score"] == pytest.approx(2 * row["rewards"]["short"] + 0.5 * row["rewards"]["environment"])
        assert row["rewards"]["short"] == float(len(row["answer"]) <= 8)


def test_a_restart_gives_the_same_bits(train):
    train("whole", redraws=1)
    _result, context = train("whole", redraws=1)
    for died in (1, 2):
        train("parts", die_at=died, redraws=1)
    _result, resumed = train("parts", redraws=1)
    assert folder_digest(context.output) == folder_digest(resumed.output)


def test_an_environment_that_fails_ends_the_stage_with_one_line(train, tmp_path):
    (tmp_path / "own.py").write_text(OWN.replace('answer == "FAIL"', "True"), "utf-8")
    with pytest.raises(StageError, match=r"^the environment .*own.py:Twice: step failed with ValueError") as error:
        train()
    assert len(str(error.value).splitlines()) == 1


def test_an_evaluation_plays_the_same_episodes(base, sft, make_context, environment, tmp_path):
    def run(folder):
        settings = {"kind": "evaluate", "model": "sft", "against": ["base"], "raters": None, "reward": None,
                    "environment": environment, "rewards": [{"kind": "length", "at_most": 3}],
                    "sampling": {"temperature": 0.0, "max_new_tokens": 12}, "batch_size": 3}  # fmt: skip
        context = make_context(tmp_path / folder, "evaluation", {"base": base, "sft": sft}, settings=settings,
                               changes={"gate": None})  # fmt: skip
        context.data["environment:Twice"] = tmp_path / "own.py"
        return evaluate.run(context.recipe.stages["evaluation"], context), context

    result, context = run("one")
    found = Evaluation.model_validate_json((context.output / "evaluation.json").read_text("utf-8"))
    rows = read_records(context.output / "samples.jsonl", EvaluatedPrompt)
    for model in ("sft", "base"):
        scores = [row.scores[model]["environment"] for row in rows]
        for row, score in zip(rows, scores, strict=True):
            turns = row.turns[model]
            assert score == pytest.approx(sum(turn.reward or 0.0 for turn in turns))
            assert row.texts[model] == [turn for turn in turns if turn.role == "assistant"][-1].content
        assert result.metrics[f"reward.{model}.environment.value"] == pytest.approx(mean(scores))
    lead = found.metric_leads["base"]["environment"].value
    difference = [row.scores["sft"]["environment"] - row.scores["base"]["environment"] for row in rows]
    assert lead == pytest.approx(mean(difference))
    assert any(len(row.turns["sft"]) == 4 for row in rows)
    # What is kept of a run that was stopped is read again, turns and rewards included; and batches change nothing.
    digest = folder_digest(context.output)
    kept = sorted((tmp_path / "one" / "checkpoints").glob("answers-*.jsonl"))
    kept[0].unlink()
    _result, again = run("one")
    assert folder_digest(again.output) == digest
