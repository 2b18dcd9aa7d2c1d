from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.errors import InputError
from alignment.recipe.files import resolve_data
from alignment.recipe.load import dump_recipe, load_recipe, recipe_digest
from alignment.recipe.recipe import Recipe
from alignment.recipe.resolved import resolve_model
from alignment.recipe.stages.preference.dpo import DpoStage
from alignment.recipe.stages.reward import RewardStage
from alignment.recipe.stages.sample import SampleStage
from alignment.recipe.stages.sft import SftStage

RECIPE = """\
name: demo
model:
  base: embedded:smollm2-135m
data:
  prompts: prompts.jsonl
stages:
  sft:
    kind: sft
    learning_rate: 1e-5
  draw:
    kind: sample
    sampling: {temperature: 0.7}
  rate:
    kind: preferences
    responses: draw
    raters: {rubric: rubric.yaml}
  dpo:
    kind: dpo
    model: sft
    preferences: rate
  eval:
    kind: evaluate
    model: dpo
gate:
  evaluation: eval
  conditions:
    - {metric: kl, below: 5}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    return file


def lines(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).replace(f"{path.parent}/", "").splitlines()


def changed(path: Path, old: str, new: str) -> Path:
    assert old in RECIPE
    path.write_text(RECIPE.replace(old, new))
    return path


def test_numbers_in_scientific_notation_are_numbers(path: Path) -> None:
    stage = load_recipe(path).stages["sft"]
    assert isinstance(stage, SftStage)
    assert stage.learning_rate == 1e-5
    for text, value in [("2E-6", 2e-6), ("1.e-3", 1e-3), (".5e-2", 5e-3), ("3e+0", 3.0)]:
        stage = load_recipe(path, [f"stages.sft.learning_rate={text}"]).stages["sft"]
        assert isinstance(stage, SftStage)
        assert stage.learning_rate == value


def test_partly_given_settings_keep_the_stages_own_defaults(path: Path) -> None:
    stage = load_recipe(path, ["stages.draw.sampling.top_k=5"]).stages["draw"]
    assert isinstance(stage, SampleStage)
    sampling = stage.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.max_new_tokens) == (0.7, 5, 0.95, 128)


def test_overrides_reach_into_lists_missing_parts_and_null(path: Path) -> None:
    changed(path, "    learning_rate: 1e-5\n", "    lora: null\n")
    recipe = load_recipe(
        path,
        [
            "gate.conditions.0.below=3",
            "resources.threads=2",
            "stages.sft.lora.rank=4",
            "stages.rm={kind: reward, preferences: rate}",
            'description="a: b"',
        ],
    )
    assert recipe.gate is not None
    assert recipe.gate.conditions[0].below == 3
    assert recipe.resources.threads == 2
    stage = recipe.stages["sft"]
    assert isinstance(stage, SftStage)
    assert stage.lora is not None
    assert stage.lora.rank == 4
    assert isinstance(recipe.stages["rm"], RewardStage)
    assert recipe.description == "a: b"


def test_setting_one_alias_leaves_the_others(path: Path) -> None:
    changed(path, "    learning_rate: 1e-5\n", "    lora: &lora {rank: 8}\n")
    path.write_text(path.read_text().replace("    model: sft\n", "    model: sft\n    lora: *lora\n"))
    recipe = load_recipe(path, ["stages.sft.lora.rank=2"])
    sft, dpo = recipe.stages["sft"], recipe.stages["dpo"]
    assert isinstance(sft, SftStage)
    assert isinstance(dpo, DpoStage)
    assert sft.lora is not None
    assert dpo.lora is not None
    assert (sft.lora.rank, dpo.lora.rank) == (2, 8)


OS_SYSTEM = "'tag:yaml.org,2002:python/object:os.system'"
NAME_RULE = "begin with a lower-case letter; then letters, digits, - and _; 40 at most"
KINDS = (
    "tokenizer, pretrain, outside_model, sft, sample, preferences, human_preferences, preference_file, judge, reward, "
    "pair_classifier, constitution, synthesis, rejection_sampling, dpo, kto, simpo, orpo, ppo, grpo, rloo, distil, "
    "quantise, evaluate, benchmark, tournament, overoptimisation"
)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("learning_rate", "learning_rat", "9:stages.sft.learning_rat: unknown key; did you mean learning_rate?"),
        ("  base:", "  bse: x\n  base:", "3:model.bse: unknown key; did you mean base?"),
        (
            "rubric: rubric",
            "rubrik: 1, rubric: rubric",
            "16:stages.rate.raters.rubrik: unknown key; did you mean rubric?",
        ),
        (
            "    sampling: {temperature: 0.7}",
            "    max_new_tokens: 9",
            "12:stages.draw.max_new_tokens: unknown key; did you mean sampling.max_new_tokens?",
        ),
        (
            "metric: kl",
            "metric: kl, zzz: 1",
            "27:gate.conditions.0.zzz: unknown key; known here: metric, above, below, against, margin, better",
        ),
        ("kind: dpo", "kind: dpoo", "17:stages.dpo: unknown kind 'dpoo'; did you mean dpo?"),
        ("kind: dpo", "kind: zzz", f"17:stages.dpo: unknown kind 'zzz'; known here: {KINDS}"),
        ("    kind: dpo\n", "", f"17:stages.dpo: the stage has no kind; add `kind: ` and one of {KINDS}"),
        ("    preferences: rate\n", "", "17:stages.dpo.preferences: missing; add it"),
        ("name: demo\n", "", "1:name: missing; add it"),
        ("name: demo", "name: My run", f"1:name: 'My run' is not a name; {NAME_RULE}"),
        ("  dpo:\n", "  Dpo:\n", f"17:stages.Dpo: 'Dpo' is not a name; {NAME_RULE}"),
        (
            "1e-5",
            "-1e-5",
            "9:stages.sft.learning_rate: -1e-05: input should be greater than 0; give a value that keeps this bound",
        ),
        (
            "1e-5",
            '"1e-5"',
            "9:stages.sft.learning_rate: '1e-5': input should be a valid number; write a number, without quotes",
        ),
        ("1e-5", ".nan", "9:stages.sft.learning_rate: not a finite number; give a finite number"),
        ("below: 5", "below: .inf", "27:gate.conditions.0.below: not a finite number; give a finite number"),
        (
            "learning_rate: 1e-5",
            "epochs: true",
            "9:stages.sft.epochs: True: input should be a valid number; write a number, without quotes",
        ),
        (
            "learning_rate: 1e-5",
            "batch_size: 2.5",
            "9:stages.sft.batch_size: 2.5: input should be a valid integer; write a whole number, without quotes",
        ),
        (
            "learning_rate: 1e-5",
            "schedule: linar",
            "9:stages.sft.schedule: 'linar' is not one of linear, cosine, constant; did you mean linear?",
        ),
        (
            "name: demo",
            "name: 7",
            "1:name: 7: input should be a valid string; "
            "write text, in quotes where YAML would read it as something else",
        ),
        (
            "  conditions:\n    - {metric: kl, below: 5}",
            "  conditions: []",
            "26:gate.conditions: empty; give at least one",
        ),
        (
            "  sft:\n",
            "  sft:\n    kind: sft\n",
            "9:stages.sft.kind: the key stands twice, first in row 8; keep one of them",
        ),
        ("name: demo", "on: x\nname: demo", "1: the key on is not text; put it in quotes"),
        ("{temperature: 0.7}", "{temperature: 0.7", "13: not YAML: expected ',' or '}', but got ':'; mend the line"),
        (
            "name: demo",
            "name: !!python/object:os.system x",
            f"1: not YAML: could not determine a constructor for the tag {OS_SYSTEM}; mend the line",
        ),
        ("name: demo", "name: &a [*a]", "1:name.0: the value contains itself; write it out"),
    ],
)
def test_one_fault_is_one_line(path: Path, old: str, new: str, line: str) -> None:
    assert lines(changed(path, old, new)) == [f"recipe.yaml:{line}"]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("stages.dpp.beta=3", "--set:stages.dpp.beta: no stage dpp; did you mean dpo?"),
        ("stages.dpo.beta", "--set: 'stages.dpo.beta' is not key=value; write --set stages.dpo.beta=0.2"),
        ("stages..beta=1", "--set: 'stages..beta=1' is not key=value; write --set stages.dpo.beta=0.2"),
        (
            "stages.dpo.beta=-1",
            "--set:stages.dpo.beta: -1: input should be greater than 0; give a value that keeps this bound",
        ),
        ("stages.dpo.betta=1", "--set:stages.dpo.betta: unknown key; did you mean beta?"),
        ("name.first=1", "--set:name.first: name is a single value, which has no first; set the value itself"),
        (
            "gate.conditions.1.below=1",
            "--set:gate.conditions.1.below: gate.conditions is a list of 1, which has no 1; set the value itself",
        ),
        (
            "name={",
            "--set:name: not YAML: expected the node content, but found '<stream end>'; put the value in quotes",
        ),
        ("seed=.inf", "--set:seed: not a finite number; give a finite number"),
    ],
)
def test_a_wrong_override_is_one_line(path: Path, override: str, line: str) -> None:
    assert lines(path, override) == [line]


def test_all_faults_come_at_once(path: Path) -> None:
    changed(path, "learning_rate: 1e-5", "learning_rat: 1e-5\n    epochs: 0")
    found = lines(path, "seed=-1", "stages.xyz.beta=1", "model.dtype=float16")
    assert [line.split(": ")[0] for line in found] == [
        "--set:stages.xyz.beta",
        "--set:seed",
        "--set:model.dtype",
        "recipe.yaml:10:stages.sft.epochs",
        "recipe.yaml:9:stages.sft.learning_rat",
    ]


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    assert lines(file) == [
        "recipe.yaml: the recipe cannot be read: No such file or directory; give the path of a recipe's YAML file"
    ]
    for content, line in [
        (b"", "recipe.yaml: the file is empty; write one `key: value` a line"),
        (b"- a\n", "recipe.yaml: the recipe is not a mapping; write one `key: value` a line"),
        (b"name: \xff", "recipe.yaml: the text is not UTF-8; save the file as UTF-8"),
        (
            b"name: \x00",
            "recipe.yaml: not YAML: unacceptable character #x0000: special characters are not allowed; mend the file",
        ),
    ]:
        file.write_bytes(content)
        assert lines(file) == [line]


@given(
    description=st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(["1e-5", "yes", "null", "0x1f", "2024-01-01", "1_000", "~", "=", "a: b", "a\x85b", "\u2028"]),
    rate=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    stop=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=2),
)
def test_a_dumped_recipe_loads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, description: str, rate: float, stop: list[str]
) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "demo",
            "description": description,
            "model": {"base": "x"},
            "stages": {
                "one": {"kind": "sft", "learning_rate": rate, "lora": None},
                "two": {"kind": "sample", "sampling": {"stop": stop}},
            },
        }
    )
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(dump_recipe(recipe), "utf-8")
    again = load_recipe(file)
    assert again == recipe
    assert recipe_digest(again) == recipe_digest(recipe)


def test_the_digest_is_of_the_values_not_of_the_file(path: Path) -> None:
    digest = recipe_digest(load_recipe(path))
    assert len(digest) == 64
    assert recipe_digest(load_recipe(changed(path, "1e-5", "0.00001  # a comment"))) == digest
    assert recipe_digest(load_recipe(changed(path, "name: demo", "seed: 0\nname: demo"))) == digest
    assert recipe_digest(load_recipe(path, ["seed=1"])) != digest


def test_the_digest_knows_the_order_of_stages() -> None:
    stages: list[tuple[str, Any]] = [("a", {"kind": "sft"}), ("b", {"kind": "sample"})]
    common = {"name": "demo", "model": {"base": "x"}}
    one, two = (Recipe.model_validate({**common, "stages": dict(order)}) for order in (stages, stages[::-1]))
    assert recipe_digest(one) != recipe_digest(two)


def test_paths_start_at_the_recipe_and_overridden_ones_here(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "elsewhere"
    (here / "model").mkdir(parents=True)
    monkeypatch.chdir(here)
    recipe = load_recipe(path, ["data.demonstrations=d.jsonl"])
    assert resolve_data(recipe, path) == {
        "prompts": tmp_path / "prompts.jsonl",
        "demonstrations": here / "d.jsonl",
        "rubric.yaml": tmp_path / "rubric.yaml",
    }
    recipe = load_recipe(path, ["data={prompts: p.jsonl}", "stages.rate.raters.rubric=r.yaml", "model.base=model"])
    assert recipe.data.prompts == str(here / "p.jsonl")
    assert resolve_data(recipe, path)[str(here / "r.yaml")] == here / "r.yaml"
    assert recipe.model.base == str(here / "model")


def test_the_models_paths(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert resolve_model(recipe.model, recipe.resources, path) == recipe.model.model_copy(
        update={"dtype": resolve_model(recipe.model, recipe.resources, path).dtype}
    )
    recipe = load_recipe(changed(path, "embedded:smollm2-135m", "org/model\n  chat_template: chat.jinja"))
    assert resolve_model(recipe.model, recipe.resources, path).base == "org/model"
    assert resolve_model(recipe.model, recipe.resources, path).chat_template == str(tmp_path / "chat.jinja")
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert resolve_model(recipe.model, recipe.resources, path).base == str(tmp_path / "org" / "model")
