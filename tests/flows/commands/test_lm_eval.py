"""``rlhf models evaluate``: lm-eval on a registered version, with a task and data of our own, offline."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TASK = """
task: tiny_colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""


def test_the_results_stand_with_the_version(
    make_recipe: Callable[..., Path], rlhf: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = make_recipe(tmp_path / "recipe", stages=("sft", "evaluation"), changes={
        "stages.evaluation.model": "sft", "stages.evaluation.against": ["base"], "stages.evaluation.reward": None,
    })  # fmt: skip
    space = tmp_path / "workspace"
    assert rlhf("run", recipe, "-w", space).code == 0
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [
        {"question": f"What colour is the {animal}?", "choices": [" red", " blue"], "answer": number % 2}
        for number, animal in enumerate(("cat", "dog", "fox", "owl", "hen"))
    ]
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "tiny.yaml").write_text(TASK.format(data=tasks / "rows.jsonl"))

    asked = ("models", "evaluate", "policy@champion", "-w", space, "--include-path", tasks, "--tasks")
    ended = rlhf(*asked, "tiny_colours", "--limit", "4", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out[ended.out.index("{") :])
    assert found["n"] == {"tiny_colours": 4}
    assert found["results"]["tiny_colours"]["acc,none"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    shown = json.loads(rlhf("models", "show", "policy/1", "-w", space, "--json").out)
    assert shown["intact"]
    assert [one["results"] for one in shown["tasks"]] == [found["results"]]
    assert shown["tasks"][0]["candidate"]["digest"] == shown["version"]["candidate"]["digest"]
    assert "lm-eval  tiny_colours (4 examples): " in rlhf("models", "show", "policy/1", "-w", space).out

    unknown = rlhf(*asked, "tiny_colors")
    assert unknown.code == 2
    assert "lm-eval knows no task 'tiny_colors'" in unknown.err
