"""What `rlhf check` says of environments before anything trains: each mistake in one line."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from alignment.checks.recipe import check_recipe
from alignment.environments import reasoning_tasks
from alignment.errors import InputError
from alignment.recipe.recipe import Recipe
from alignment.recipe.resolved import resolve_recipe

Checker = Callable[..., list[str]]
Write = Callable[[str, Iterable[Any]], Path]
CALCULATOR = {"kind": "calculator", "max_tokens": 20}
GRPO = {"kind": "grpo", "model": "base", "episodes": 8, "per_prompt": 4, "sampling": {"max_new_tokens": 8}}
OWN = """
class Maze:
    def reset(self, prompt, seed): ...
    def step(self, answer): return "", True, 0.0

class Half:
    def reset(self, prompt, seed): ...

class Child(Maze): ...

def maker(): ...
Alias = Maze
"""


@pytest.fixture
def check(checked: Checker, write: Write, tmp_path: Path) -> Checker:
    """The faults of a GRPO stage with an environment, on twenty prompts with references."""
    write("prompts.jsonl", [{"prompt": f"p{n}", "reference": str(n)} for n in range(20)])
    (tmp_path / "own.py").write_text(OWN, "utf-8")

    def faults(environment: dict[str, Any], *, resources: dict[str, Any] | None = None, **changes: Any) -> list[str]:
        stages = {"grpo": GRPO | {"environment": environment} | changes}
        return checked(data={"prompts": "prompts.jsonl"}, stages=stages, resources=resources or {"device": "cpu"})

    return faults


def own(name: str) -> dict[str, Any]:
    return {"kind": "python", "class_path": name, "max_tokens": 20}


@pytest.mark.parametrize(
    "environment",
    [CALCULATOR, own("own.py:Maze"), own("own.py:Child"), own("own.py:Alias"),
     own("alignment.environments.calculator:Calculator")],
)  # fmt: skip
def test_what_is_right(environment: dict[str, Any], check: Checker) -> None:
    assert check(environment) == []
    assert check(environment, resources={"device": "cpu", "workers": 2}) == []  # other stages' workers


REMEDY = "; name a class with reset and step as file.py:Class or package.module:Class"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing.py:Maze", "no file missing.py"),
        ("own.py:Labyrinth", "own.py defines no Labyrinth"),
        ("own.py:Half", "the class Half of own.py has no method step"),
        ("own.py:maker", "own.py defines maker as a function, and a class is wanted"),
        ("no_such.module:Maze", "no module no_such.module"),
    ],
)
def test_a_class_that_is_none(name: str, problem: str, check: Checker) -> None:
    (line,) = check(own(name))
    assert line.endswith(f"stages.grpo.environment.class_path: {problem}{REMEDY}")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rollout_workers": 1}, "stages.grpo.rollout_workers: episodes with an environment are played where the "
                                 "policy trains, and not by rollout workers; set it to 0, or remove environment"),
        ({"rollout_workers": 1, "max_staleness": 1, "importance_cap": 2.0}, "stages.grpo.rollout_workers: "),
        ({"workers": 2}, "stages.grpo.workers: episodes with an environment are played in one process; "
                         "set it to 1, or remove environment"),
        ({"environment": CALCULATOR | {"max_tokens": 60}}, "stages.grpo.environment.max_tokens: 60 new tokens after "
                                                           "the longest prompt's"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(changes: dict[str, Any], line: str, check: Checker) -> None:
    (found,) = check(changes.pop("environment", CALCULATOR), **changes)
    assert line in found


def test_prompts_without_a_reference(check: Checker, write: Write) -> None:
    write("prompts.jsonl", [{"prompt": f"p{n}"} for n in range(20)])
    lines = check(CALCULATOR)
    assert lines
    assert all(
        line.endswith(
            "reference: no reference, and the environment compares with it; give the row a reference, or "
            "remove the environment"
        )
        for line in lines
    )
    assert check(CALCULATOR | {"weight": 0.0}, rewards=[{"kind": "length", "at_most": 3}]) == []
    assert check(own("own.py:Maze")) == []


def test_a_template_that_knows_no_tools(check: Checker, byte_model: Path, tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (tmp_path / "own.jinja").write_text(template, "utf-8")
    stages = {"grpo": GRPO | {"environment": CALCULATOR}}
    recipe = {"name": "t", "model": {"base": str(byte_model), "chat_template": "own.jinja"},
              "data": {"prompts": "prompts.jsonl"}, "stages": stages, "resources": {"device": "cpu"}}  # fmt: skip
    path = tmp_path / "other.yaml"

    def faults() -> list[str]:
        path.write_text(Recipe.model_validate(recipe).model_dump_json(), "utf-8")
        return [str(fault) for fault in check_recipe(resolve_recipe(path))]

    (line,) = faults()
    assert "stages.grpo.environment.role: observations are told in the role tool, and no tools; take a model" in line
    stages["grpo"] = GRPO | {"environment": CALCULATOR | {"role": "user"}}
    assert faults() == []


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"rewards": []}, "no rewards: give one or more, or an environment whose reward counts"),
        ({"rewards": [], "environment": CALCULATOR | {"weight": 0}}, "environment.weight=0 counts none"),
        ({"environment": CALCULATOR, "rewards": [{"kind": "number", "name": "environment"}]}, "as the environment's"),
        ({"environment": CALCULATOR | {"max_tokens": 7}}, "environment.max_tokens=7 is less than one answer may have"),
        ({"environment": {"kind": "calculater"}}, "calculater"),
        ({"environment": {"kind": "python", "class_path": "own.py"}}, "class_path"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(settings: dict[str, Any], problem: str, check: Checker) -> None:
    with pytest.raises(InputError) as error:
        check(settings.pop("environment", None), **settings)
    assert problem in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_ppo_has_no_environment(checked: Checker, write: Write) -> None:
    write("prompts.jsonl", [{"prompt": f"p{n}", "reference": str(n)} for n in range(20)])
    ppo = {"kind": "ppo", "model": "base", "rewards": [{"kind": "number"}], "environment": CALCULATOR}
    with pytest.raises(InputError, match="environment"):
        checked(data={"prompts": "prompts.jsonl"}, stages={"ppo": ppo})


# --- reasoning-gym


LEGS = {"kind": "reasoning_gym", "task": "leg_counting", "max_tokens": 20}


def test_a_task_that_is_not_installed(check: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)  # what Python takes for a module that is not there
    lines = check(LEGS)
    assert "stages.grpo.environment.task: reasoning-gym is not installed" in lines[0]
    assert "pip install 'rlhf-flows[reasoning-gym]'" in lines[0]


def test_a_task_and_its_prompts(check: Checker, write: Write, checked: Checker, tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    reasoning_tasks.main(["basic_arithmetic", "--size", "20", "--seed", "3", "--out", str(tmp_path / "prompts.jsonl")])
    task = {"kind": "reasoning_gym", "task": "basic_arithmetic", "max_tokens": 8}
    assert [line for line in check(task) if "tokens" not in line] == []
    (line,) = [line for line in check(task | {"task": "basic_arithmetics"}) if "task:" in line]
    assert "reasoning-gym has no task basic_arithmetics; it has base_conversion, basic_arithmetic" in line
    (line,) = [line for line in check(task | {"options": {"depth": 3}}) if "task:" in line]
    assert "basic_arithmetic refuses its options: TypeError" in line
    write("prompts.jsonl", [{"prompt": f"p{n}", "source": "reasoning_gym/basic_arithmetic/3/20"} for n in range(20)])
    lines = check(task)
    assert lines
    assert all("no place in basic_arithmetic, such as reasoning_gym/basic_arithmetic/1/500/0" in one for one in lines)
