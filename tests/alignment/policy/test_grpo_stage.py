"""The stages grpo and rloo on the tiny model: every loss, every start, restarts, figures, and broken rewards."""

import json
import logging
import shutil
import statistics

import pytest
import torch
from pydantic import ValidationError

from alignment.durable_files import folder_digest
from alignment.errors import StageError
from alignment.models.adapters import is_adapter
from alignment.models.load import load_policy
from alignment.models.reward_model import new_reward_model
from alignment.policy.grpo.metrics import group_alarms
from alignment.recipe.stages.grpo import GrpoLoss, GrpoStage
from alignment.records import Artifact
from alignment.stage import Progress
from alignment.stages.grpo import run

LORA = {"rank": 4, "alpha": 8}
REWARDS = [
    {"kind": "length_penalty", "unit": "characters", "free": 4, "full": 14, "weight": 2.0},
    {"kind": "language", "script": "latin", "name": "latin"},
]
STAGE = {"model": "base", "rewards": REWARDS, "steps": 3, "episodes": 8, "per_prompt": 4, "batch_size": 4,
         "sampling": {"max_new_tokens": 6}, "learning_rate": 1e-2, "checkpoint_every": 1, "lora": LORA,
         "warmup": 0.0}  # fmt: skip


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


class Died(BaseException):
    """Ends a stage in the middle."""


@pytest.fixture
def train(base, sft, make_context, tmp_path):
    """Runs a stage in a folder, as its runner does: the output begins anew, the checkpoints stay."""

    def train(kind="grpo", folder="run", die_at=None, dtype="float32", inputs=None, **changes):
        root = tmp_path / folder
        shutil.rmtree(root / "output", ignore_errors=True)
        steps: list[int] = []

        def report(progress: Progress) -> None:
            steps.append(progress.step)
            if progress.step == die_at:
                raise Died

        context = make_context(
            root, "policy", {"base": base, "sft": sft} | (inputs or {}), settings={"kind": kind} | STAGE | changes,
            changes={"model.dtype": dtype}, report=report,
        )  # fmt: skip
        try:
            return run(context.recipe.stages["policy"], context), context, steps
        except Died:
            return None, context, steps

    return train


def moved(context, base):
    """Whether the trained policy gives other logits than the one it started from."""
    settings = context.recipe.stages["policy"]
    trained = Artifact(
        name="policy",
        kind="model",
        version=1,
        digest=folder_digest(context.output),
        path=str(context.output),
        key="policy",
    )
    before, tokenizer = load_policy(context.inputs[settings.model], base, context.run)
    after, _ = load_policy(trained, base, context.run)
    ids = torch.tensor([tokenizer("What colour", add_special_tokens=False)["input_ids"]])
    return trained, not torch.equal(before(ids).logits, after(ids).logits)


@pytest.mark.parametrize("loss", [loss if loss in ("dapo", "vespo") else slow(loss) for loss in GrpoLoss.__args__])
def test_every_loss_trains(loss, train, base):
    result, context, steps = train(loss=loss, epochs=2, minibatches=2, steps=1)
    assert steps == [4]  # two passes of two minibatches
    assert moved(context, base)[1]
    assert result.kind == "model"


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("grpo", {"beta": 0.1}),
        ("grpo", {"beta": 0.1, "model": "sft", "loss": "gspo"}),
        ("grpo", {"beta": 0.1, "lora": None, "scale_rewards": "none"}),
        slow(
            "grpo",
            {
                "mask_truncated": True,
                "aggregation": "normalize_then_sum",
                "delta": 2.0,
                "top_entropy": 0.5,
                "entropy_coefficient": 0.01,
            },
        ),
        slow("grpo", {"gradient_checkpointing": True, "beta": 0.1, "dtype": "bfloat16"}),
        slow("rloo", {}),
        ("rloo", {"model": "sft", "normalize_advantages": True, "clip_rewards": [-1.0, 1.0], "dtype": "bfloat16"}),
        slow("rloo", {"lora": None, "beta": 0.0}),
    ],
    ids=str,
)
def test_a_policy_moves_from_wherever_it_starts(kind, changes, train, base):
    result, context, _steps = train(kind, **changes)
    settings = context.recipe.stages["policy"]
    trained, has_moved = moved(context, base)
    assert has_moved
    assert is_adapter(trained) == (settings.lora is not None)
    curves = json.loads((context.output / "curves.json").read_text("utf-8"))
    assert set(curves) >= {"reward", "reward.length_penalty", "reward.latin", "entropy", "length", "eos_rate", "loss"}
    assert len(curves["reward"]) == settings.steps
    if settings.beta:
        first = curves["kl"][0][1]
        assert first == pytest.approx(0.0, abs=1e-4 if context.recipe.model.dtype == "float32" else 0.05)
        assert abs(curves["kl"][-1][1]) > abs(first)
    assert result.tokens_trained > result.tokens_sampled > 0
    assert result.metrics["prompts"] > 0


def test_a_step_adds_up(train):
    """The reward is the weighted sum of its parts, tokens are those of the sampled answers, and tables show them."""
    result, context, _steps = train(steps=2)
    curves = result.curves
    for (_, total), (_, length), (_, latin) in zip(
        curves["reward"], curves["reward.length_penalty"], curves["reward.latin"], strict=True
    ):
        assert total == pytest.approx(2 * length + latin, abs=1e-5)
        assert -1 <= length <= 0
        assert 0 <= latin <= 1
    assert result.tokens_sampled == sum(round(8 * length) for _step, length in curves["length"])
    rows = json.loads((context.output / "samples" / "step-000002.json").read_text("utf-8"))
    assert len(rows) == 8
    for row in rows:
        assert row["score"] == pytest.approx(2 * row["rewards"]["length_penalty"] + row["rewards"]["latin"])
        over = (len(row["answer"].strip()) - 4) / 10
        assert row["rewards"]["length_penalty"] == pytest.approx(-min(max(over, 0), 1))
    assert curves["length"][1][1] == pytest.approx(sum(row["tokens"] for row in rows) / 8)
    assert curves["eos_rate"][1][1] == pytest.approx(sum(row["finished"] for row in rows) / 8)


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_a_missing_end_costs_deviations_of_the_rewards(kind, train):
    """From the run's own table of answers: the deviation is that of all rewards so far, and `reward` is without it."""
    result, context, _steps = train(kind, model="sft", steps=2, missing_eos_penalty=0.5)
    curves, tables = result.curves, []
    for step in (1, 2):
        rows = json.loads((context.output / "samples" / f"step-{step:06d}.json").read_text("utf-8"))
        tables.append(rows)  # all eight answers of the step
        totals = [row["score"] for table in tables for row in table]
        cut = sum(not row["finished"] for row in rows) / len(rows)
        assert curves["reward.missing_end"][step - 1][1] == pytest.approx(-statistics.stdev(totals) * cut, rel=1e-5)
        assert curves["reward"][step - 1][1] == pytest.approx(statistics.mean(row["score"] for row in rows), abs=1e-6)
    assert 0 < sum(row["finished"] for table in tables for row in table) < 16
    assert "reward.missing_end" not in train(kind, "none", model="sft", steps=1, missing_eos_penalty=0.0)[0].curves


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("grpo", {"beta": 0.1, "model": "sft"}),
        slow("grpo", {"epochs": 2, "lora": None}),
        slow("rloo", {"minibatches": 2}),
    ],
    ids=str,
)
def test_two_deaths_change_nothing(kind, changes, train):
    changes |= {"steps": 5, "checkpoint_every": 2, "rewards": [*REWARDS, {"kind": "format", "forms": ["lowercase"]}]}
    updates = changes.get("epochs", 1) * changes.get("minibatches", 1)
    expected, whole, _ = train(kind, "whole", **changes)
    assert train(kind, "died", die_at=1 * updates, **changes)[2] == [updates]  # before any checkpoint
    assert train(kind, "died", die_at=3 * updates, **changes)[2] == [updates, 2 * updates, 3 * updates]
    result, context, steps = train(kind, "died", **changes)
    assert steps == [3 * updates, 4 * updates, 5 * updates]
    assert folder_digest(context.output) == folder_digest(whole.output)
    assert result.metrics == expected.metrics
    assert result.curves == expected.curves
    assert result.tokens_trained == expected.tokens_trained
    assert result.tokens_sampled == expected.tokens_sampled


def test_a_broken_reward_stops_the_run_and_shows_the_answer(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "bad.py").write_text(
        "def bad(prompts, responses, references):\n    return [float('nan')] * 8\n"
    )
    with pytest.raises(StageError, match=r"the reward function gave nan; prompt 'W.*', answer '"):
        train(rewards=[{"kind": "function", "function": "bad.py:bad"}])


def test_another_chat_template_is_an_error_before_training(train, base, make_context, tmp_path):
    context = make_context(tmp_path / "made", "sft", {"base": base})
    model, tokenizer = new_reward_model(base, base, context.run)
    folders = {}
    for name in ("same", "other"):
        folders[name] = tmp_path / name
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|im_start|> ")
    made = {n: Artifact(name="reward", kind="reward_model", version=1, digest="0", path=str(p), key=n)
            for n, p in folders.items()}  # fmt: skip
    rewards = [{"kind": "model", "model": "reward"}, *REWARDS]
    with pytest.raises(StageError, match="reward was trained with another chat template"):
        train(folder="no", rewards=rewards, inputs={"reward": made["other"]})
    result, _context, _steps = train(folder="yes", rewards=rewards, inputs={"reward": made["same"]}, steps=1)
    assert result.curves["reward.model"] == [(1, 0.0)]  # its head is zero


def test_prompts_that_are_all_too_long_are_an_error(train):
    with pytest.raises(StageError, match="max_prompt_length=3"):
        train(max_prompt_length=3)


def test_answers_that_all_score_the_same_raise_an_alarm(train, caplog):
    with caplog.at_level(logging.WARNING):
        result, context, _steps = train(rewards=[{"kind": "length", "at_most": 1000}], steps=4)
    [alarm] = [alarm for alarm in json.loads((context.output / "alarms.json").read_text()) if "no_signal" in alarm]
    assert alarm.startswith("step 3: no_signal")
    assert "policy step 3: no_signal" in caplog.text
    assert result.metrics["alarms"] >= 1


def test_alarms_are_those_of_the_known_pathologies():
    step = {"reward": 1.0, "entropy": 2.0, "length": 10.0, "eos_rate": 0.5, "groups_without_spread": 0.0, "kl": 1.0}
    assert group_alarms([step] * 5) == []
    bad = step | {"entropy": 0.1, "length": 25.0, "eos_rate": 0.0, "kl": 80.0}
    names = [alarm.split(":")[0] for alarm in group_alarms([step, bad, bad, bad])]
    assert sorted(names) == ["entropy_collapse", "kl_runaway", "length_blow_up", "no_eos"]
    without_reference = {name: value for name, value in step.items() if name != "kl"}
    assert group_alarms([without_reference] * 4) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("per_prompt", 1),
        ("per_prompt", 3),
        ("minibatches", 3),
        ("rewards", []),
        ("rewards", [REWARDS[0], REWARDS[0]]),
        ("rewards", [{"kind": "nothing"}]),
        ("sampling", {"temperature": 0.0}),
        ("sampling", {"top_p": 0.9}),
        ("sampling", {"stop": ["."]}),
        ("loss", "reinforce"),
        ("importance_level", "sequence"),
        ("max_staleness", 1),
        ("unknown", 1),
    ],
)
def test_settings_that_cannot_work_are_refused(field, value):
    with pytest.raises(ValidationError):
        GrpoStage.model_validate(STAGE | {"kind": "grpo", field: value})


def test_two_rewards_of_one_kind_need_names():
    stage = GrpoStage.model_validate(
        STAGE | {"kind": "grpo", "rewards": [REWARDS[0], REWARDS[0] | {"name": "short"}]}
    )  # fmt: skip
    assert [reward.name for reward in stage.rewards] == [None, "short"]
