from alignment.evaluation.metric_names import evaluated_models, evaluation_judges, evaluation_metric_names
from alignment.recipe.raters import SimulatedRaters
from alignment.recipe.stages.evaluate import EvaluateStage


def test_names_of_a_full_evaluation() -> None:
    stage = EvaluateStage(
        kind="evaluate",
        model="dpo",
        against=("base", "sft"),
        raters=SimulatedRaters(rubric="rubric.yaml"),
        reward="reward",
    )
    names = evaluation_metric_names(stage)
    assert names[:6] == [
        "win_rate.base.rubric.value",
        "win_rate.base.rubric.low",
        "win_rate.base.rubric.high",
        "win_rate.base.rubric.length_controlled",
        "win_rate.base.rubric.length_controlled.low",
        "win_rate.base.rubric.length_controlled.high",
    ]
    assert "win_rate.sft.reward.low" in names
    assert names[24] == "kl"
    assert names[25:28] == ["length.dpo", "length.base", "length.sft"]
    assert len(names) == len(set(names)) == 2 * 2 * 6 + 1 + 4 * 3


def test_no_judge_means_no_win_rates() -> None:
    stage = EvaluateStage(kind="evaluate", model="dpo")
    assert evaluation_judges(stage) == ()
    assert not [name for name in evaluation_metric_names(stage) if name.startswith("win_rate")]


def test_a_model_named_twice_is_one_model() -> None:
    stage = EvaluateStage(kind="evaluate", model="dpo", against=("base", "base", "dpo"), reward="reward")
    assert evaluated_models(stage) == ("dpo", "base")
    names = evaluation_metric_names(stage)
    assert len(names) == len(set(names))
