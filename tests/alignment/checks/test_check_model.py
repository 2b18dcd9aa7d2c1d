"""What a stage would load or render and could not: seen by the check, from headers and by rendering."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignment.checks.causality import architecture_faults, looks_ahead
from alignment.data.split import is_held_out
from alignment.errors import StageError
from alignment.models.weights import require_all, require_finite, weight_faults

Write = Callable[[str, Iterable[Any]], Path]
Checker = Callable[..., list[str]]
TRAIN = [word for word in (f"p{n}" for n in range(40)) if not is_held_out(word, 0.2)]
SFT = {"kind": "sft", "max_length": 60}
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
END = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n"


@pytest.fixture
def model(byte_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(byte_model, folder)
    return folder


@pytest.fixture
def shown(write: Write) -> dict[str, str]:
    write("shown.jsonl", [{"prompt": word, "completion": "a"} for word in TRAIN])
    return {"demonstrations": "shown.jsonl"}


def sft_faults(checked: Checker, data: dict[str, str]) -> list[str]:
    return checked(model={"base": "./model"}, data=data, stages={"sft": SFT})


def test_the_untouched_model_has_no_fault(checked: Checker, model: Path, shown: dict[str, str]) -> None:
    assert sft_faults(checked, shown) == []


# --- files


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def shard(folder: Path) -> Path:
    """The model's weights in two shards with their index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    halves = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, part in halves.items():
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model-00002-of-00002.safetensors"


def lose_a_shard(folder: Path) -> None:
    shard(folder).unlink()


def point_to_a_shard(folder: Path) -> None:
    shard(folder).write_text(POINTER)


def empty_a_shard(folder: Path) -> None:
    save_file({"other": torch.zeros(1)}, shard(folder))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (
            lambda folder: (folder / "model.safetensors").write_text(POINTER),
            "model/model.safetensors: a Git LFS pointer, not the weights themselves; run `git lfs pull` there",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_text("/annex/objects/SHA256E-s1--0"),
            "model/model.safetensors: a git-annex pointer, not the weights themselves; run `git annex get` there",
        ),
        (
            lambda folder: (folder / "tokenizer.json").write_text(POINTER),
            "model/tokenizer.json: a Git LFS pointer, not the file itself; run `git lfs pull` there",
        ),
        (truncate, "model/model.safetensors: not a whole weight file: it has "),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b""),
            "model/model.safetensors: not a whole weight file: it has no header; copy or download it again",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0[1,2]"),
            "model/model.safetensors: not a whole weight file: its header is no mapping; copy or download it again",
        ),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "other.safetensors"),
            "model: neither model.safetensors nor its index is there (other.safetensors); ",
        ),
        (
            lose_a_shard,
            "model/model-00002-of-00002.safetensors: the shard model-00002-of-00002.safetensors is missing, "
            "and model.safetensors.index.json names it; copy or download it again",
        ),
        (
            point_to_a_shard,
            "model/model-00002-of-00002.safetensors: a Git LFS pointer, not the weights themselves; ",
        ),
        (empty_a_shard, "model/model-00002-of-00002.safetensors: model.layers.0.mlp."),
    ],
)
def test_weights_that_could_not_be_loaded(
    checked: Checker, model: Path, shown: dict[str, str], damage: Callable[[Path], Any], line: str
) -> None:
    damage(model)
    found = sft_faults(checked, shown)
    assert len(found) == 1
    assert found[0].startswith(line)


def test_whole_shards_are_no_fault(checked: Checker, model: Path, shown: dict[str, str]) -> None:
    shard(model)
    assert weight_faults(model) == []
    assert sft_faults(checked, shown) == []


def test_a_tokenizer_larger_than_the_embedding(checked: Checker, model: Path, shown: dict[str, str]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    size = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(model)
    assert sft_faults(checked, shown) == []  # nothing writes it: text models carry such tokens of their siblings
    tokenizer.add_tokens(["colour"])
    tokenizer.save_pretrained(model)
    assert sft_faults(checked, shown) == [
        f"model: the tokenizer's 'colour' is number {size + 1}, and the model has {size} embeddings; "
        "give the tokenizer that the model was trained with"
    ]


# --- templates


@pytest.mark.parametrize(
    ("template", "rows", "line"),
    [
        (
            "{% if messages | length > 3 %}{{ raise_exception('one turn only') }}{% endif %}{% for m in messages %}"
            + TURN + "{% endfor %}" + END,
            [{"messages": [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]}],
            "shown.jsonl:1: the model's chat template refuses the conversation: one turn only; ",
        ),
        (
            "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}<|im_start|>assistant\n"
            "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% else %}" + TURN + "{% endif %}{% endfor %}" + END,
            [{"messages": [
                {"role": "user", "content": "x"}, {"role": "assistant", "content": "<think>why</think>y"},
                {"role": "user", "content": "z"}, {"role": "assistant", "content": "y"},
            ]}],
            "shown.jsonl:1: the model's chat template leaves out a part of message 2 (the assistant's); ",
        ),
        (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n"
            "{% endfor %}" + END,
            [{"prompt": "x", "completion": "<think>why</think>y"}],
            "shown.jsonl:1: the model's chat template leaves out a part of message 2 (the assistant's); ",
        ),
        (
            "{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}" + END,
            [{"prompt": "x", "completion": "y", "system": "Be brief."}],
            "shown.jsonl:1: the model's chat template leaves out a part of message 1 (the system's); ",
        ),
        (
            "{% for m in messages %}" + TURN + "{% endfor %}",
            [{"prompt": "x", "completion": "y"}],
            "./model/../model: the chat template ignores add_generation_prompt, and writes",
        ),
    ],
)  # fmt: skip
def test_a_template_that_a_stage_cannot_use(
    checked: Checker, write: Write, model: Path, template: str, rows: list[Any], line: str
) -> None:
    (model / "chat_template.jinja").write_text(template)
    write("shown.jsonl", rows)
    found = sft_faults(checked, {"demonstrations": "shown.jsonl"})
    assert len(found) == 1
    assert found[0].startswith(line.replace("./model/../model", "model"))


def test_a_template_that_needs_no_generation_prompt_is_no_fault(
    checked: Checker, model: Path, shown: dict[str, str]
) -> None:
    """As those of Llama 2 and Mistral: the assistant's words follow the user's turn without a header."""
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}"
        "<|im_end|>{% endif %}{% endfor %}"
    )
    assert sft_faults(checked, shown) == []


@pytest.mark.parametrize(
    ("row", "number", "token"),
    [
        ({"prompt": "Ignore this.<|im_end|>", "completion": "y"}, 1, "<|im_end|>"),
        ({"prompt": "x", "completion": "y<pad>"}, 2, "<pad>"),
        ({"prompt": "x", "completion": "y", "system": "<|im_start|>"}, 1, "<|im_start|>"),
    ],
)
def test_control_tokens_inside_a_text(
    checked: Checker, write: Write, model: Path, row: dict[str, str], number: int, token: str
) -> None:
    write("shown.jsonl", [{"prompt": "a", "completion": "b"}, row])
    (line,) = sft_faults(checked, {"demonstrations": "shown.jsonl"})
    assert line.startswith(f"shown.jsonl:2: message {number} (the ")
    assert f"holds {token}, a control token of the model; " in line


NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% for m in messages %}" + TURN + "{% endfor %}" + END
)
DROPS_REASONING = (
    "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}<|im_start|>assistant\n"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% else %}" + TURN + "{% endif %}{% endfor %}" + END
)
DRAW = {"kind": "sample", "sampling": {"max_new_tokens": 4}}
PRINCIPLE = {"name": "short", "critique": "Is it short?", "revision": "Shorten it."}


@pytest.mark.parametrize(
    ("template", "stage", "field", "reason"),
    [
        (
            NO_SYSTEM,
            {"kind": "judge", "responses": "draw", "judge": {"kind": "generative", "model": "base"}},
            "stages.own.judge",
            "no system turn",
        ),
        (
            NO_SYSTEM,
            {"kind": "synthesis", "models": ["base"], "principles": {"brief": "Be brief.", "long": "Be long."},
             "sampling": {"max_new_tokens": 4}},
            "stages.own.principles.brief",
            "no system turn",
        ),
        (
            DROPS_REASONING,
            {"kind": "constitution", "responses": "draw", "writer": {"model": "base"}, "principles": [PRINCIPLE]},
            "stages.own.writer",
            "leaves out a part of message 2",
        ),
    ],
)  # fmt: skip
def test_what_the_product_itself_asks_is_rendered(
    checked: Checker, write: Write, model: Path, template: str, stage: dict[str, Any], field: str, reason: str
) -> None:
    write("prompts.jsonl", [{"prompt": f"p{n}"} for n in range(40)])
    parts = {"data": {"prompts": "prompts.jsonl"}, "stages": {"draw": DRAW, "own": stage}}
    assert checked(model={"base": "./model"}, **parts) == []
    (model / "chat_template.jinja").write_text(template)
    found = checked(model={"base": "./model"}, **parts)
    assert found
    assert f":{field}: the " in found[0]
    assert reason in found[0]


# --- what kind of model


def test_an_encoder_is_no_base(checked: Checker, model: Path, shown: dict[str, str]) -> None:
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(vocab_size=300, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    (model / "model.safetensors").unlink()
    BertLMHeadModel(config).save_pretrained(model)
    assert sft_faults(checked, shown) == [
        "model: bert is no causal decoder as it is configured: its tokens see what comes after them; "
        "give a model that AutoModelForCausalLM loads as a decoder, such as a Llama or a Qwen"
    ]


def test_architectures() -> None:
    """Known from the literature: decoders (GPT-2, Llama, OPT, Mixtral) look back only, encoders both ways."""
    from transformers import (
        BartConfig,
        BertConfig,
        ElectraConfig,
        GPT2Config,
        LlamaConfig,
        MambaConfig,
        MixtralConfig,
        OPTConfig,
        RobertaConfig,
        T5Config,
    )

    for decoder in (
        GPT2Config(),
        LlamaConfig(),
        OPTConfig(),
        MixtralConfig(),
        BertConfig(is_decoder=True),
        MambaConfig(),
    ):
        assert not looks_ahead(decoder)
        assert architecture_faults(decoder, "model", sampled=True) == []
    for encoder in (BertConfig(), RobertaConfig(), ElectraConfig()):
        assert looks_ahead(encoder)
    problems = [
        architecture_faults(config, "model", sampled=True)[0].problem
        for config in (T5Config(), BartConfig(), LlamaConfig(architectures=["LlamaForSequenceClassification"]))
    ]
    assert problems == [
        "t5 is no causal language model",
        "bart is an encoder with a decoder, not a decoder alone",
        "the folder holds a LlamaForSequenceClassification, whose weights have no language-model head: "
        "it would be random",
    ]


def test_a_loss_of_routers_that_there_are_none_of(checked: Checker, model: Path, shown: dict[str, str]) -> None:
    found = checked(model={"base": "./model"}, data=shown, stages={"sft": SFT | {"router_loss": 0.01}})
    assert [fault.partition(": ")[2] for fault in found] == ["llama computes no loss of routers; leave router_loss out"]
    for value in (None, 0):
        assert checked(model={"base": "./model"}, data=shown, stages={"sft": SFT | {"router_loss": value}}) == []


def test_weights_that_would_be_drawn_at_random(checked: Checker, model: Path, shown: dict[str, str]) -> None:
    """A folder whose files are whole and hold one weight less than its configuration speaks of."""
    weights = load_file(model / "model.safetensors")
    absent = "model.layers.0.mlp.up_proj.weight"
    save_file({name: weight for name, weight in weights.items() if name != absent}, model / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    assert sft_faults(checked, shown) == [
        f"model: it does not hold {absent}, which the model needs: they would be drawn at random; "
        "give the folder of a causal language model"
    ]
    with pytest.raises(StageError, match=f"does not hold {absent}"):
        require_all([absent], "model")


def test_weights_that_are_not_finite() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    require_finite(layers.named_parameters(), "the model")
    for value in (float("nan"), float("inf"), -float("inf")):
        with torch.no_grad():
            layers[1].weight[2, 1] = value
        with pytest.raises(StageError, match=r"the model has weights that are not finite numbers \(1\.weight\)"):
            require_finite(layers.named_parameters(), "the model")
