"""reasoning-gym's tasks as environments: its own verifier scores, attempts are counted, and prompts say their place."""

import json

import pytest

gym = pytest.importorskip("reasoning_gym")

from alignment.data.prompts import read_prompts  # noqa: E402
from alignment.environments.process import EnvironmentProcess  # noqa: E402
from alignment.environments.reasoning_tasks import TRY_AGAIN, ReasoningTask, TaskError, main  # noqa: E402
from alignment.recipe.stages.environment import ReasoningGymEnvironment  # noqa: E402


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "prompts.jsonl"
    main(["leg_counting", "--size", "6", "--seed", "5", "--options", '{"max_animals": 4}', "--out", str(path)])
    return read_prompts(path)


def told(prompt):
    return {"messages": [prompt.messages[0].model_dump()], "reference": prompt.reference, "source": prompt.source}


def test_prompts_are_the_tasks_entries(prompts):
    entries = gym.create_dataset("leg_counting", seed=5, size=6, max_animals=4)
    assert [prompt.messages[0].content for prompt in prompts] == [entry["question"].strip() for entry in entries] or [
        prompt.messages[0].content for prompt in prompts
    ] == [entry["question"] for entry in entries]
    assert [prompt.reference for prompt in prompts] == [entry["answer"] for entry in entries]
    assert {prompt.kind for prompt in prompts} == {"leg_counting"}


def test_the_verifiers_score_is_the_reward(prompts):
    for prompt in prompts:
        task = ReasoningTask("leg_counting", 1, {"max_animals": 4})
        task.reset(told(prompt), 0)
        assert task.step(f"Let me see. <answer>{prompt.reference}</answer>") == ("", True, 1.0)
        task.left = 1
        wrong = gym.create_dataset("leg_counting", seed=5, size=6, max_animals=4).score_answer(
            answer="-1", entry=task.entry
        )
        assert task.step("-1") == ("", True, wrong)


def test_attempts(prompts):
    task = ReasoningTask("leg_counting", 2, {"max_animals": 4})
    task.reset(told(prompts[0]), 0)
    assert task.step("<answer>-1</answer>") == (TRY_AGAIN, False, 0.0)
    assert task.step(prompts[0].reference)[1:] == (True, 1.0)


def test_prompts_of_other_options_are_refused(prompts):
    with pytest.raises(TaskError, match="asks something else than the prompt"):
        ReasoningTask("leg_counting", 1, {"max_animals": 9}).reset(told(prompts[0]), 0)


def test_in_its_process(prompts):
    settings = ReasoningGymEnvironment(
        kind="reasoning_gym", task="leg_counting", options={"max_animals": 4}, seconds=60
    )
    environment = EnvironmentProcess(settings)
    environment.reset(0, prompts[1], 0)
    assert environment.step(0, prompts[1], prompts[1].reference).reward == 1.0
    environment.close()


@pytest.mark.parametrize(
    "arguments", [["no_such_task"], ["leg_counting", "--size", "0"], ["leg_counting", "--options", "[]"]]
)
def test_mistakes_are_one_line(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--out", str(tmp_path / "x.jsonl")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("error:") == 1
    assert not (tmp_path / "x.jsonl").exists()


def test_rows_are_json_lines(tmp_path):
    main(["basic_arithmetic", "--size", "2", "--out", str(tmp_path / "x.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text("utf-8").splitlines()]
    assert [row["source"] for row in rows] == [f"reasoning_gym/basic_arithmetic/0/2/{n}" for n in range(2)]
