"""Encoders as reward models: their scores are bare transformers', they learn, they are saved whole."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignment.chat import render_response
from alignment.errors import StageError
from alignment.models.encoders.architecture import head_weights, output_layer
from alignment.models.encoders.model import answer_segment, new_encoder
from alignment.models.prefix_sharing import share_prefixes
from alignment.models.reward_model import load_reward_model, score
from alignment.records import Artifact, Message
from alignment.stage import StageContext
from alignment.stages.reward import run
from tests.tiny_encoders import ENCODERS, write_encoder

MakeContext = Callable[..., StageContext]
USER = (Message(role="user", content="What colour is the cat?"),)
ANSWERS = ("It is red.", "Blue.", "Who saw it? What is the word for it today?")
FAST = {"epochs": 6, "batch_size": 8, "learning_rate": 5e-3, "warmup": 0, "max_length": 96, "model": "base"}


def train(context: StageContext, folder: Path) -> Any:
    context.data = {**context.data, "encoder": folder}
    return run(context.recipe.stages[context.name], context)  # type: ignore[arg-type,attr-defined]


@pytest.fixture(scope="module", params=ENCODERS)
def family(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, write_encoder(tmp_path_factory.mktemp("family") / request.param, request.param)


def reward_artifact(folder: Path) -> Artifact:
    return Artifact(name="reward", kind="reward_model", version=1, digest="0", path=str(folder), key="reward")


def bare_scores(folder: Path, dtype: torch.dtype = torch.float32) -> list[float]:
    """As a model card would say it: the tokenizer's pair, and one forward pass of the plain class."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    found = []
    for answer in ANSWERS:
        batch = tokenizer("user: What colour is the cat?", answer, return_tensors="pt")
        with torch.inference_mode():
            found.append(float(model(**batch).logits[0, 0]))
    return found


def rows(tokenizer: Any) -> list[list[int]]:
    return [render_response(tokenizer, USER, answer, finished=True) for answer in ANSWERS]


def test_the_scores_are_the_plain_models(
    family: tuple[str, Path], preferences: Artifact, base: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    """Also in a padded batch, behind an untrained start that scores 0, and with no weight left to chance."""
    name, folder = family
    context = make_context(tmp_path / "run", "reward", {"base": base, "preferences": preferences})
    model, tokenizer = new_encoder(folder, context.run, 96)
    again, _tokenizer = new_encoder(folder, context.run, 96)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    assert score(model, tokenizer, rows(tokenizer)) == [0.0, 0.0, 0.0]
    assert not share_prefixes(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in output_layer(model).parameters():
            torch.nn.init.normal_(parameter, generator=generator)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    expected = bare_scores(tmp_path / "saved")
    assert len({round(value, 3) for value in expected}) == 3
    assert score(model, tokenizer, rows(tokenizer)) == pytest.approx(expected, abs=2e-5)
    alone = [score(model, tokenizer, [row])[0] for row in rows(tokenizer)]
    assert alone == pytest.approx(expected, abs=2e-5)
    loaded, tokenizer = load_reward_model(reward_artifact(tmp_path / "saved"), context.run)
    assert score(loaded, tokenizer, rows(tokenizer)) == score(model, tokenizer, rows(tokenizer))
    if name == "bert":  # its two segments count
        batch = AutoTokenizer.from_pretrained(folder)("user: What colour is the cat?", ANSWERS[0])
        ids = torch.tensor([batch["input_ids"]])
        assert answer_segment(ids, None, model.separator).tolist() == [batch["token_type_ids"]]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"lora": None}, marks=pytest.mark.slow),
        pytest.param({"lora": None, "adapter": {"kind": "layers", "last": 1}}, marks=pytest.mark.slow),
    ],
)
def test_it_learns_a_preference_and_is_saved_whole(
    family: tuple[str, Path],
    settings: dict[str, Any],
    preferences: Artifact,
    base: Artifact,
    make_context: MakeContext,
    tmp_path: Path,
) -> None:
    """Short answers over long ones: separable, so held-out accuracy is 1; in bfloat16 the head stays in float32."""
    name, folder = family
    dtype = "bfloat16" if name == "roberta" or settings else "float32"
    settings = FAST | {"encoder": {"folder": str(folder)}} | settings
    changes = {"model.dtype": dtype}
    inputs = {"base": base, "preferences": preferences}
    context = make_context(tmp_path, "reward", inputs, settings=settings, changes=changes)
    result = train(context, folder)
    losses = [value for _step, value in json.loads((context.output / "curves.json").read_text())["loss"]]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert result.metrics["accuracy"] == 1.0
    files = {path.name for path in context.output.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "held_out.json"} <= files
    assert not files & {"chat_template.sha256", "chat_template.jinja", "adapter_config.json"}
    model, tokenizer = load_reward_model(reward_artifact(context.output), context.run)
    assert tokenizer.model_max_length == 96
    assert {weight.dtype for _name, weight in head_weights(model)} == {torch.float32}
    assert model.dtype == getattr(torch, dtype)
    found = score(model, tokenizer, rows(tokenizer))
    once_more, tokenizer = load_reward_model(reward_artifact(context.output), context.run)
    assert score(once_more, tokenizer, rows(tokenizer)) == found
    if dtype == "float32":
        assert found == pytest.approx(bare_scores(context.output), abs=2e-5)
    detail = json.loads((context.output / "held_out.json").read_text())
    assert all(margin > 0 for margin in detail["margins"])


def test_calibrated_scores_are_the_saved_ones(
    preferences: Artifact, base: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    folder = write_encoder(tmp_path / "bert", "bert")
    found = []
    for calibrate in (False, True):
        settings = FAST | {"encoder": {"folder": str(folder)}, "calibrate": calibrate, "epochs": 2}
        inputs = {"base": base, "preferences": preferences}
        context = make_context(tmp_path / str(calibrate), "reward", inputs, settings=settings)
        result = train(context, folder)
        model, tokenizer = load_reward_model(reward_artifact(context.output), context.run)
        found.append((result.metrics, score(model, tokenizer, rows(tokenizer))))
    (_plain, raw), (scaled, divided) = found
    assert scaled["temperature"] != 1
    assert [value * scaled["temperature"] for value in divided] == pytest.approx(raw, rel=1e-4, abs=1e-5)


def test_a_folder_without_the_encoders_own_weights_is_refused(
    base: Artifact, preferences: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_encoder(tmp_path / "roberta", "roberta")
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if name.endswith("layer.1.output.dense.weight"))
    kept = {name: weight for name, weight in weights.items() if name != lost}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    context = make_context(tmp_path / "run", "reward", {"base": base, "preferences": preferences})
    with pytest.raises(StageError, match=r"does not hold roberta\.encoder\.layer\.1\.output\.dense\.weight"):
        new_encoder(folder, context.run, 96)


def test_another_head_makes_room_for_one_that_scores(
    base: Artifact, preferences: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    """A classifier of three labels is an encoder all the same: its dense layer is kept, its outputs are not."""
    from safetensors.torch import load_file

    folder = write_encoder(tmp_path / "roberta", "roberta", head="SequenceClassification", num_labels=3)
    context = make_context(tmp_path / "run", "reward", {"base": base, "preferences": preferences})
    model, tokenizer = new_encoder(folder, context.run, 96)
    assert score(model, tokenizer, rows(tokenizer)) == [0.0, 0.0, 0.0]
    kept = load_file(folder / "model.safetensors")["classifier.dense.weight"]
    assert torch.equal(model.classifier.dense.weight, kept)
    assert model.config.num_labels == 1


def test_segments_by_hand() -> None:
    """9 is the separator: finished, cut off, a talk, padding, RoBERTa's two between and no prompt."""
    ids = torch.tensor([[1, 5, 9, 6, 9, 0, 0], [1, 5, 9, 6, 7, 0, 0], [1, 5, 9, 6, 9, 7, 9], [1, 5, 9, 9, 6, 9, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0, 0], [1] * 7, [1, 1, 1, 1, 1, 1, 0]])
    expected = [[0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1, 0]]
    assert answer_segment(ids, mask, 9).tolist() == expected
