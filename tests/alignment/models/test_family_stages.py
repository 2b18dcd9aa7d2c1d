"""Families whose training differs (routers, states, caps, biases by distance) through SFT and DPO, whole or adapted."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from alignment.models.base_model import prepare_base
from alignment.recipe.run_settings import ModelSettings
from alignment.records import Artifact
from alignment.stage import StageContext
from alignment.stages import dpo, sft
from alignment.workspace import Workspace
from tests.tiny_families import build

LORA = {"rank": 4, "alpha": 8}
CASES = [
    ("mixtral", None), ("mixtral", LORA), ("granitemoe", None), ("llama4", LORA), ("deepseek_v3", None),
    ("recurrent_gemma", LORA), ("mamba", LORA), ("falcon_alibi", None),
]  # fmt: skip
SLOW = [
    ("phimoe", None), ("phimoe", LORA), ("gpt_oss", LORA), ("qwen2_moe", LORA), ("qwen3_next", LORA), ("jamba", LORA),
    ("falcon_h1", LORA), ("gemma2", LORA), ("gemma3_vision", LORA), ("bert_decoder", None), ("cohere", LORA),
]  # fmt: skip
SLOW_CASES = [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]


def base_of(name: str, make_model: Callable[..., Path], folder: Path) -> Artifact:
    """A tiny model of this family with the tiny tokenizer, as a run's base."""
    model = make_model(folder / "model")
    for path in model.glob("*.safetensors"):
        path.unlink()
    size = {"vocab_size": 400, "max_position_embeddings": 256}
    if name == "gemma3_vision":
        from tests.tiny_families import DECODERS

        text: Any = DECODERS[name][1]["text_config"]
        size = {"text_config": text | size}
    build(name, **size).save_pretrained(model)
    return prepare_base(Workspace(folder / "space"), ModelSettings(base=str(model)))


def test_the_routers_loss_by_recipe(
    make_model: Callable[..., Path], make_context: Callable[..., StageContext], tmp_path: Path
) -> None:
    """The first loss grows by the coefficient times the routers' loss, which is shown; at 0 there is neither."""
    base = base_of("mixtral", make_model, tmp_path)
    curves = {}
    for coefficient in (0, 0.5):
        settings = {"lora": LORA, "epochs": 1, "checkpoint_every": 1000, "router_loss": coefficient}
        context = make_context(tmp_path / str(coefficient), "sft", {"base": base}, settings=settings)
        curves[coefficient] = sft.run(context.recipe.stages["sft"], context).curves  # type: ignore[arg-type]
    assert "aux_loss" not in curves[0]
    grown = curves[0.5]["loss"][0][1] - curves[0]["loss"][0][1]
    assert grown == pytest.approx(0.5 * curves[0.5]["aux_loss"][0][1], rel=1e-3)


@pytest.mark.parametrize(("name", "lora"), [*CASES, *SLOW_CASES])
def test_sft_and_dpo(
    name: str,
    lora: dict[str, int] | None,
    make_model: Callable[..., Path],
    make_context: Callable[..., StageContext],
    preferences: Artifact,
    tmp_path: Path,
) -> None:
    """All demonstrations and pairs begin alike, so that a batch may be a tree; DPO's first loss is ln 2,
    and in a mixture of experts that of its routers beside it."""
    base = base_of(name, make_model, tmp_path)
    settings = {"lora": lora, "epochs": 1, "checkpoint_every": 1000, "learning_rate": 1e-3}
    context = make_context(tmp_path / "sft", "sft", {"base": base}, settings=settings)
    result = sft.run(context.recipe.stages["sft"], context)  # type: ignore[arg-type]
    assert all(math.isfinite(loss) for _step, loss in result.curves["loss"])
    if lora is None:
        saved = json.loads((context.output / "config.json").read_text("utf-8"))
        assert not saved.get("output_router_logits", False)
    start = Artifact(name="sft", kind="model", version=1, digest="1" * 64, path=str(context.output), key="sft")
    inputs = {"base": base, "sft": start, "preferences": preferences}
    settings = {"epochs": 1, "checkpoint_every": 1000} | ({"lora": None} if lora is None else {})
    context = make_context(tmp_path / "dpo", "dpo", inputs, settings=settings)
    result = dpo.run(context.recipe.stages["dpo"], context)  # type: ignore[arg-type]
    routers = result.curves.get("aux_loss")
    coefficient = getattr(AutoConfig.from_pretrained(base.path).get_text_config(), "router_aux_loss_coef", 0.0)
    more = 0.0 if routers is None else coefficient * routers[0][1]
    assert result.curves["loss"][0][1] == pytest.approx(math.log(2) + more, abs=1e-3)
    assert result.curves["rewards/margins"][0][1] == pytest.approx(0, abs=1e-5)
