"""What an environment's file holds is part of a stage's cache key, and its place is not."""

from collections.abc import Callable
from pathlib import Path

from alignment.recipe.files import resolve_data, with_absolute_data
from alignment.recipe.load import load_recipe
from alignment.records import Artifact
from alignment.workspace import Workspace
from flows.pipeline.stage_task import make_job

OWN = "class Maze:\n    def reset(self, prompt, seed): ...\n    def step(self, answer): return '', True, 0.0\n"


def test_the_key_of_an_environment(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    base = Artifact(name="base", kind="model", version=1, digest="0", path=str(tmp_path), key="base")

    def key(path: Path, *overrides: str) -> str:
        recipe = load_recipe(path, overrides)
        data = resolve_data(recipe, path)
        job = make_job("policy", recipe, {"base": base}, data, Workspace(tmp_path / "space"))
        file = next((path for name, path in job.data.items() if name.startswith("environment:")), None)
        assert file is None or file == path.parent / "own.py"
        moved = with_absolute_data(recipe, data)
        absolute = make_job("policy", moved, {"base": base}, resolve_data(moved, path), Workspace(tmp_path / "space"))
        assert absolute.key == job.key
        return job.key

    def write(folder: str, text: str = OWN) -> Path:
        environment = {"kind": "python", "class_path": "own.py:Maze", "max_tokens": 64}
        stage = {"kind": "grpo", "model": "base", "environment": environment}
        path = make_recipe(tmp_path / folder, changes={"stages.policy": stage})
        path.parent.joinpath("own.py").write_text(text, "utf-8")
        return path

    one = write("one")
    first = key(one)
    assert key(write("two")) == first
    assert key(write("three", OWN.replace("0.0", "1.0"))) != first
    assert key(
        write("four", OWN + "\nclass Other(Maze): ...\n"), "stages.policy.environment.class_path=own.py:Other"
    ) != (key(write("five", OWN + "\nclass Other(Maze): ...\n")))
    assert key(one, "stages.policy.environment.max_turns=5") != first
    task = "{kind: reasoning_gym, task: leg_counting}"
    assert key(one, f"stages.policy.environment={task}") != key(one, "stages.policy.environment={kind: calculator}")
