from typing import Any, get_args

import pytest

from alignment.checks.graph import PRODUCTS, wiring_faults
from alignment.evaluation.metric_names import evaluation_metric_names
from alignment.recipe.base import Product
from alignment.recipe.error_messages import STAGE_KINDS
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.evaluate import EvaluateStage

SFT = {"kind": "sft"}
DRAW = {"kind": "sample", "model": "sft"}
RATE = {"kind": "preferences", "responses": "draw", "raters": {"rubric": "r.yaml"}}
REWARD = {"kind": "reward", "model": "sft", "preferences": "rate"}
DPO = {"kind": "dpo", "model": "sft", "preferences": "rate"}
EVAL = {"kind": "evaluate", "model": "dpo", "against": ["base", "sft"], "reward": "reward"}
THUMBS = {"kind": "human_preferences", "responses": "draw", "feedback": "thumbs"}
SCORES = THUMBS | {"feedback": "scores", "criteria": {"warm": "1: cold; 5: kind."}}
KTO = {"kind": "kto", "model": "sft"}
STAGES = {"sft": SFT, "draw": DRAW, "rate": RATE, "reward": REWARD, "dpo": DPO, "eval": EVAL}


def faults(gate: dict[str, Any] | None = None, **stages: dict[str, Any] | None) -> list[str]:
    merged = {name: settings for name, settings in ({**STAGES, **stages}).items() if settings is not None}
    recipe = {"name": "test", "model": {"base": "x"}, "stages": merged, "gate": gate}
    return [str(fault) for fault in wiring_faults(Recipe.model_validate(recipe))]


def gate(*conditions: dict[str, Any], evaluation: str = "eval") -> dict[str, Any]:
    return {"evaluation": evaluation, "conditions": list(conditions)}


def test_a_whole_recipe_has_no_fault() -> None:
    assert faults(gate({"metric": "win_rate.base.reward.low", "above": 0.5})) == []


def test_what_people_make_is_what_they_were_asked_for() -> None:
    several = SCORES | {"comparisons_per_prompt": 2}
    stages = {"thumbs": THUMBS, "kto": KTO | {"feedback": "thumbs"}, "scores": several,
              "other": DPO | {"preferences": "scores"}, "rewrites": THUMBS | {"feedback": "rewrites"},
              "more": SFT | {"demonstrations": "rewrites"}, "again": DPO | {"preferences": "rewrites"}}  # fmt: skip
    assert faults(**stages) == []


def test_every_product_is_made_and_has_words() -> None:
    made = {product for settings in STAGE_KINDS.values() for product in settings.spec.makes}
    assert made == set(PRODUCTS) == set(get_args(Product))
    assert {product for settings in STAGE_KINDS.values() for product in settings.spec.reads.values()} <= made


@pytest.mark.parametrize(
    ("stages", "line"),
    [
        (
            {"reward": REWARD | {"preferences": "sft"}},
            "stages.reward.preferences: sft makes a model, not preferences; "
            "give one of rate, or put a stage of kind preferences or human_preferences or preference_file or "
            "judge or constitution before it",
        ),
        (
            {"reward": REWARD | {"preferences": "base"}},
            "stages.reward.preferences: base makes a model, not preferences; "
            "give one of rate, or put a stage of kind preferences or human_preferences or preference_file or "
            "judge or constitution before it",
        ),
        (
            {"thumbs": THUMBS, "kto": KTO | {"preferences": "thumbs"}},
            "stages.kto.preferences: thumbs makes answers with thumbs, not preferences; "
            "give one of rate, or put a stage of kind preferences or human_preferences or preference_file or "
            "judge or constitution before it",
        ),
        (
            {"kto": KTO | {"feedback": "rate"}},
            "stages.kto.feedback: rate makes preferences, not answers with thumbs; "
            "put a stage of kind human_preferences before it",
        ),
        (
            {"scores": SCORES, "kto": KTO | {"preferences": "scores"}},
            "stages.kto.preferences: scores makes scored answers, not preferences; "
            "give one of rate, or put a stage of kind preferences or human_preferences or preference_file or "
            "judge or constitution before it",
        ),
        (
            {"dpo": DPO | {"model": "stf"}},
            "stages.dpo.model: no stage stf; did you mean sft?",
        ),
        (
            {"dpo": DPO | {"model": "xyzxyz"}},
            "stages.dpo.model: no stage xyzxyz; give one of base and sft, or put a stage of kind pretrain or outside_model or sft or dpo or kto or simpo or orpo or ppo or grpo or rloo or distil or quantise or tournament before it",  # noqa: E501 - one line is what is tested
        ),
        (
            {"sft": SFT | {"model": "dpo"}},
            "stages.sft.model: dpo comes later; stages run in the order they are written; "
            "give one of base, or put a stage of kind pretrain or outside_model or sft or dpo or kto or "
            "simpo or orpo or ppo or grpo or "
            "rloo or distil or quantise or tournament before it",
        ),
        (
            {"sft": SFT | {"model": "sft"}},
            "stages.sft.model: a stage cannot read its own output; "
            "give one of base, or put a stage of kind pretrain or outside_model or sft or dpo or kto or "
            "simpo or orpo or ppo or grpo or "
            "rloo or distil or quantise or tournament before it",
        ),
        (
            {"rate": RATE | {"responses": "sft"}, "draw": None},
            "stages.rate.responses: sft makes a model, not responses; "
            "put a stage of kind sample or synthesis before it",
        ),
        (
            {"eval": EVAL | {"reward": "dpo"}},
            "stages.eval.reward: dpo makes a model, not a reward model; "
            "give one of reward, or put a stage of kind reward before it",
        ),
        (
            {"eval": EVAL | {"reference": "draw"}},
            "stages.eval.reference: draw makes responses, not a model; give one of base, sft and dpo, "
            "or put a stage of kind pretrain or outside_model or sft or dpo or kto or simpo or orpo or ppo or grpo "
            "or rloo or distil or quantise or tournament before it",
        ),
        (
            {"eval": EVAL | {"prompts": "rate"}},
            "stages.eval.prompts: rate makes preferences, not held-out prompts; "
            "put a stage of kind preference_file before it",
        ),
        (
            {"eval": EVAL | {"against": ["base", "dpo"]}},
            "stages.eval.against: dpo is compared with itself; remove it from the opponents",
        ),
        (
            {"eval": EVAL | {"against": ["base", "sft", "base"]}},
            "stages.eval.against: base stands twice; keep one of them",
        ),
        ({"base": SFT}, "stages.base: base is the name of the model that all start from; give the stage another name"),
        (
            {"draw": DRAW | {"per_prompt": 1}},
            "stages.draw.per_prompt: one response to a prompt leaves nothing to compare, and rate compares them; "
            "draw at least two",
        ),
        (
            {"dpo": DPO | {"loss": "exo_pair"}},
            "stages.dpo.label_smoothing: the loss exo_pair takes the logarithm of label_smoothing, which is 0; "
            "set it above 0, such as 0.001",
        ),
        (
            {"dpo": DPO | {"loss": ["sigmoid", "sft", "sft"]}},
            "stages.dpo.loss: sft stands twice; keep one of them, and give its weight in loss_weights",
        ),
        (
            {"dpo": DPO | {"loss": ["apo_down", "apo_zero"]}},
            "stages.dpo.loss: apo_zero makes the chosen answers likelier and apo_down less likely; keep one of them",
        ),
        (
            {"dpo": DPO | {"loss": ["sigmoid", "sft"], "loss_weights": [1.0]}},
            "stages.dpo.loss_weights: 1 weights for 2 losses; give one for each of sigmoid and sft",
        ),
        (
            {"dpo": DPO | {"loss_weights": [0.5]}},
            "stages.dpo.loss_weights: loss_weights weighs several losses, and sigmoid is the only one; "
            "remove it, or give a list of losses",
        ),
        (
            {"dpo": DPO | {"label_smoothing": 0.1}},
            "stages.dpo.label_smoothing: sigmoid does not read label_smoothing; leave it at 0, or take the loss robust",
        ),
        (
            {"dpo": DPO | {"loss": "sft", "refresh_reference": 8}},
            "stages.dpo.refresh_reference: the loss sft has no reference to refresh; "
            "remove it, or add a loss that has one",
        ),
    ],
)
def test_a_wrong_input_is_one_line(stages: dict[str, Any], line: str) -> None:
    assert faults(**stages) == [line]


MEASURED = ", ".join(evaluation_metric_names(EvaluateStage.model_validate(EVAL))[:-1])


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            gate({"metric": "win_rate.base.rubric.low", "above": 0.5}),
            "gate.conditions.0.metric: eval does not measure win_rate.base.rubric.low; "
            f"did you mean win_rate.base.reward.low? it measures {MEASURED} and finished.sft",
        ),
        (
            gate({"metric": "zzz", "above": 0.5}),
            f"gate.conditions.0.metric: eval does not measure zzz; it measures {MEASURED} and finished.sft",
        ),
        (gate({"metric": "kl"}), "gate.conditions.0: the condition has no bound; set above, below or both"),
        (
            gate({"metric": "kl", "below": 9}, {"metric": "kl", "above": 2, "below": 1}),
            "gate.conditions.1: no value is above 2.0 and below 1.0; set above to less than below",
        ),
        (
            gate({"metric": "kl", "below": 9}, evaluation="evall"),
            "gate.evaluation: no stage evall; did you mean eval?",
        ),
        (
            gate({"metric": "kl", "below": 9}, evaluation="sft"),
            "gate.evaluation: sft is of kind sft; name one of kind evaluate: eval",
        ),
        (
            gate({"metric": "win_rate.sft.reward.high", "above": 0.5}),
            "gate.conditions.0.above: the high end of an interval is above 0.5 for worse models too, where prompts are "
            "few; {metric: win_rate.reward, against: sft, margin: 0.05} asks that it is no worse",
        ),
        (
            gate({"metric": "win_rate.sft.reward.length_controlled.low", "below": 0.9}),
            "gate.conditions.0.below: the low end of an interval is below 0.9 for worse models too, where prompts are "
            "few; set against and a margin in its place",
        ),
    ],
)
def test_a_wrong_gate_is_one_line(given: dict[str, Any], line: str) -> None:
    assert faults(given) == [line]


def test_no_gate_decides_by_prompts_that_are_trained_on() -> None:
    given = gate({"metric": "kl", "below": 9})
    assert faults(given, eval=EVAL | {"split": "train"}) == [
        "stages.eval.split: the gate decides by eval, which asks prompts that are trained on; "
        "set it to held out, or name another"
    ]


def test_all_come_at_once() -> None:
    found = faults(
        gate({"metric": "zzz"}, evaluation="nothing"),
        reward=REWARD | {"preferences": "draw", "model": "nothing"},
        dpo=DPO | {"loss": "exo_pair"},
    )
    assert [line.split(":")[0] for line in found] == [
        "stages.reward.model",
        "stages.reward.preferences",
        "stages.dpo.label_smoothing",
        "gate.evaluation",
        "gate.conditions.0",
    ]


PPO = {"kind": "ppo", "model": "sft", "reward": "reward"}
PLAY = {"kind": "tournament", "policies": ["dpo", "ppo"], "model": "sft", "raters": {"rubric": "r.yaml"}}
WAYS = PLAY | {"kind": "overoptimisation", "reward": "reward"}


def test_a_tournaments_output_is_a_model() -> None:
    assert faults(ppo=PPO, play=PLAY, last={"kind": "evaluate", "model": "play"}) == []


LAST = {"kind": "evaluate", "model": "play"}


@pytest.mark.parametrize(
    ("play", "last", "half"),
    [
        ({}, {}, "second half"),
        ({"part": "second half"}, {}, "first half"),
        ({}, {"part": "all"}, "all"),
        ({}, {"model": "more"}, "second half"),  # trained on from the best one
        ({}, {"model": "dpo"}, "all"),
    ],
)
def test_who_chose_does_not_judge(play: dict[str, Any], last: dict[str, Any], half: str) -> None:
    more = {"kind": "dpo", "model": "play", "preferences": "rate"}
    stages = STAGES | {"ppo": PPO, "play": PLAY | play, "more": more, "last": LAST | last}
    recipe = Recipe.model_validate({"name": "test", "model": {"base": "x"}, "stages": stages})
    settings = recipe.stages["last"]
    assert isinstance(settings, EvaluateStage)
    assert settings.part == half
    again = Recipe.model_validate(recipe.model_dump(mode="json"))
    assert again == recipe


@pytest.mark.parametrize(
    ("play", "last", "line"),
    [
        ({}, {"part": "all"},
         "stages.last.part: play chose play on the first half, and last asks all; set it to second half, or leave it "
         "out"),
        ({}, {"part": "first half"},
         "stages.last.part: play chose play on the first half, and last asks first half; set it to second half, or "
         "leave it out"),
        ({"part": "all"}, {},
         "stages.play.part: play chose on all held-out prompts, and leaves last none that took no part in it; set it "
         "to first half, its default"),
    ],
)  # fmt: skip
def test_a_gate_on_the_prompts_that_chose(play: dict[str, Any], last: dict[str, Any], line: str) -> None:
    asks = gate({"metric": "kl", "below": 9}, evaluation="last")
    assert faults(asks, ppo=PPO, play=PLAY | play, last=LAST | last) == [line]
    assert faults(asks, ppo=PPO, play=PLAY, last=LAST) == []


@pytest.mark.parametrize(
    ("stages", "line"),
    [
        ({"play": PLAY | {"policies": ["dpo", "sft"]}}, "stages.play.policies: sft is compared with itself"),
        ({"play": PLAY | {"policies": ["dpo", "dpo"]}}, "stages.play.policies: dpo stands twice"),
        ({"play": PLAY | {"policies": ["dpo", "rate"]}}, "stages.play.policies: rate makes preferences, not a model"),
        ({"ways": WAYS}, "stages.ppo.snapshot_every: ppo keeps no snapshots, and its end alone shows no way there"),
    ],
)
def test_faults_of_a_tournament(stages: dict[str, Any], line: str) -> None:
    assert any(fault.startswith(line) for fault in faults(**({"ppo": PPO} | stages)))


def test_a_policy_in_training_travels_to_vllm_as_an_adapter_with_importance_weights() -> None:
    recipe = {
        "name": "test", "model": {"base": "x"}, "resources": {"vllm": {"url": "http://localhost:8000"}},
        "stages": STAGES | {"ppo": PPO | {"lora": None}},
    }  # fmt: skip
    found = [str(fault) for fault in wiring_faults(Recipe.model_validate(recipe))]
    assert [fault.split(":")[0] for fault in found] == ["stages.ppo.lora", "stages.ppo.importance_cap"]
    recipe["stages"] = STAGES | {"ppo": PPO | {"importance_cap": 2.0}}
    assert wiring_faults(Recipe.model_validate(recipe)) == []
