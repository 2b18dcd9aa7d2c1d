"""Encoder-decoders by the command line: a whole recipe, what may be done with its version, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.flows.conftest import call
from tests.tiny_encoders import write_encoder
from tests.tiny_seq2seq import FAMILIES, write_seq2seq

Rlhf = Callable[..., Any]
MakeRecipe = Callable[..., Path]
PROMPTS = ("Who saw the cat?", "Name the red one in one word.")


def answers(model: Any, tokenizer: Any) -> list[str]:
    """Greedy ones of transformers' own."""
    model.generation_config.forced_eos_token_id = None
    rows = [
        model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=8, do_sample=False, num_beams=1)[0]
        for text in PROMPTS
    ]
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]


def asked(rlhf: Rlhf, model: str | Path, workspace: Path) -> list[str]:
    options = [part for text in PROMPTS for part in ("--prompt", text)]
    ended = rlhf("generate", model, *options, "--max-new-tokens", "8", "--json", "-w", workspace)
    assert (ended.code, ended.err) == (0, "")
    return [json.loads(line)["response"] for line in ended.out.splitlines()]


def refused(rlhf: Rlhf, model: str | Path, workspace: Path, commands: tuple[str, ...]) -> None:
    for command in commands:
        ended = rlhf(command, model, "-w", workspace)
        assert ended.code == 2, ended.err
        [line] = [one for one in ended.err.splitlines() if "is an encoder with a decoder" in one]
        assert "Traceback" not in ended.err
        assert "`rlhf generate` asks it" in line


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_is_asked_and_not_talked_to(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    folder = write_seq2seq(tmp_path / name, name)
    expected = answers(AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))
    assert asked(call, folder, tmp_path / "workspace") == expected
    refused(call, folder, tmp_path / "workspace", ("chat",))
    ended = call("generate", folder, "--prompt", "Who?", "--prompt-lookup", "3", "-w", tmp_path / "workspace")
    assert ended.code == 2
    assert "is an encoder with a decoder, which cannot be proposed tokens" in ended.err


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "lora"), [("t5", {"rank": 4, "alpha": 8}), ("bart", None)])
def test_a_recipe_from_demonstrations_to_a_version(
    name: str, lora: Any, rlhf: Rlhf, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """SFT, samples, preferences, an encoder as reward model, DPO, an evaluation, the registry, bare transformers."""
    from peft import AutoPeftModelForSeq2SeqLM
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    encoder = write_encoder(tmp_path / "encoder", "bert")
    changes = {
        "stages.sft.lora": lora, "stages.dpo.lora": lora, "stages.reward.model": "base",
        "stages.reward.encoder": {"folder": str(encoder)}, "stages.reward.max_length": 96,
        "stages.reward.cut_chosen": "keep", "stages.dpo.cut_chosen": "keep",
        "stages.evaluation.metrics": [{"kind": "perplexity"}, {"kind": "length"}],
    }  # fmt: skip
    changes["gate.conditions"] = [{"metric": "kl", "below": 1e9}]  # whatever random weights do
    recipe = make_recipe(tmp_path / "recipe", model=write_seq2seq(tmp_path / name, name), changes=changes)
    workspace = tmp_path / "workspace"
    checked = rlhf("check", recipe, "-w", workspace)
    assert (checked.code, checked.err) == (0, "")
    assert f"{name} is an encoder with a decoder: its decoder begins with" in checked.out
    assert rlhf("plan", recipe, "-w", workspace).code == 0
    ended = rlhf("run", recipe, "-w", workspace)
    assert (ended.code, ended.err) == (0, ""), ended.out[-3000:]
    again = rlhf("run", recipe, "-w", workspace)
    assert again.code == 0

    folder = next((workspace / "registry" / "policy").glob("*"))
    kind: Any = AutoModelForSeq2SeqLM if lora is None else AutoPeftModelForSeq2SeqLM
    model, tokenizer = kind.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert f"{kind.__name__}.from_pretrained" in (folder / "README.md").read_text("utf-8")
    said = asked(rlhf, "policy/1", workspace)
    with torch.no_grad():
        assert said == answers(model, tokenizer)
    refused(rlhf, "policy/1", workspace, ("chat",))
