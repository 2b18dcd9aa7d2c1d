"""Teachers from outside: their files and digests, answers alone of a server, and the answers' path against a loop."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.data.jsonl import read_records
from alignment.durable_files import folder_digest
from alignment.errors import InputError, StageError
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.compression.distil import DistilStage
from alignment.recipe.stages.compression.outside_model import OutsideModelStage
from alignment.recipe.stages.feedback.rejection_sampling import RejectionSamplingStage
from alignment.recipe.stages.sample import SampleStage
from alignment.recipe.stages.sft import SftStage
from alignment.records import Artifact, Demonstration, Prompt, Response
from alignment.stages.compression.outside_model import run as bring
from alignment.stages.feedback.rejection_sampling import run as choose
from alignment.stages.sample import run as sample
from alignment.stages.sft import run as imitate
from tests.alignment.conftest import artifact_of
from tests.alignment.judges.fake_server import Answer, FakeServer

MakeContext = Callable[..., Any]


@pytest.fixture
def server() -> Any:
    fake = FakeServer()
    yield fake
    fake.stop()


def brought(make_context: MakeContext, folder: Path, base: Artifact, source: Path, **settings: Any) -> Any:
    stage = OutsideModelStage.model_validate({"kind": "outside_model", "folder": str(source)} | settings)
    context = make_context(folder, "teacher", {"base": base}, changes={"stages.teacher": stage.model_dump(mode="json")})
    context.data["folder"] = source
    return bring(stage, context), context.output


def test_a_folder_is_copied_and_left_alone(
    make_context: MakeContext, base: Artifact, make_model: Any, tmp_path: Path
) -> None:
    source = make_model(tmp_path / "teacher", seed=7)
    (source / "optimizer.pt").write_bytes(b"not the model's")
    weights = source / "model.safetensors"
    result, output = brought(make_context, tmp_path / "run", base, source)
    assert (output / "model.safetensors").read_bytes() == weights.read_bytes()
    assert not (output / "optimizer.pt").exists()
    assert weights.stat().st_nlink == 1  # who changes the folder changes nothing of the artifact
    model = AutoModelForCausalLM.from_pretrained(source)
    assert result.metrics == {"parameters": float(sum(one.numel() for one in model.parameters()))}
    assert result.origins == (f"folder {source}, digest {folder_digest(source)}",)


def test_what_is_no_whole_model_is_refused(
    make_context: MakeContext, base: Artifact, make_model: Any, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no folder"):
        brought(make_context, tmp_path / "a", base, tmp_path / "nowhere")
    source = make_model(tmp_path / "teacher")
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        brought(make_context, tmp_path / "b", base, source)


def test_a_hubs_model_is_brought_from_its_cache(
    make_context: MakeContext, base: Artifact, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub's cache is laid out as the hub's client lays it out; nothing is asked over the network."""
    from huggingface_hub import constants

    revision = "a" * 40
    home = tmp_path / "hub"
    source = make_model(home / "models--some--teacher" / "snapshots" / revision, seed=7)
    (home / "models--some--teacher" / "refs").mkdir()
    (home / "models--some--teacher" / "refs" / "main").write_text(revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    stage = OutsideModelStage(kind="outside_model", hub="some/teacher", revision="main")
    context = make_context(tmp_path / "run", "teacher", {"base": base}, changes={"stages.teacher": stage.model_dump()})
    result = bring(stage, context)
    assert (context.output / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert result.origins == (f"hub some/teacher@main, digest {folder_digest(source)}",)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "name one of version, folder and hub"),
        ({"version": "policy/3", "folder": "x"}, "name one of version, folder and hub"),
        ({"folder": "x", "revision": "main"}, "revision is of a hub's model"),
        ({"version": "Policy champion"}, "String should match"),
    ],
)
def test_one_place_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        OutsideModelStage.model_validate({"kind": "outside_model", **settings})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"teacher": {"endpoint": {"url": "http://x/v1", "model": "m"}}},
            "an endpoint gives answers, and no distribut",
        ),
        ({"teacher": "policy@champion"}, "a stage of its own: put `kind: outside_model`"),
        ({"teacher": "../models/big"}, "a stage of its own: put `kind: outside_model`"),
        ({"teacher": "sft", "source": "answers"}, "draw them by a stage `sample`"),
    ],
)
def test_what_has_no_distributions_to_teach_is_told_in_a_line(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DistilStage.model_validate({"kind": "distil", **settings})
    [error] = caught.value.errors()
    assert words in error["msg"]
    assert "\n" not in error["msg"]


ENDPOINT = {"url": "http://x/v1", "model": "m"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "sft"}, "one of them answers"),
        ({"best_of": 4, "reward": "reward"}, "choose by rejection_sampling"),
        ({"sampling": {"top_k": 5}}, r"sampling\.top_k is not part of an endpoint's interface"),
        ({"workers": 2}, r"endpoint\.concurrency says"),
    ],
)
def test_what_a_server_does_not_know_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SampleStage.model_validate({"kind": "sample", "endpoint": ENDPOINT, **settings})


def asked_of_a_server(
    make_context: MakeContext, folder: Path, base: Artifact, server: FakeServer, **settings: Any
) -> tuple[Any, Any]:
    stage = SampleStage.model_validate(
        {"kind": "sample", "endpoint": {"url": server.url, "model": "big", "retries": 0}, "per_prompt": 3, "limit": 4,
         "sampling": {"temperature": 0.8, "top_p": 0.9, "max_new_tokens": 12, "stop": ["."]}} | settings
    )  # fmt: skip
    changes = {"stages.responses": stage.model_dump(mode="json"), "stages.sft": {"kind": "sft"}}
    context = make_context(folder, "responses", {"base": base}, changes=changes)
    return sample(stage, context), context


def test_a_server_is_asked_for_each_answer_by_a_seed_of_its_own(
    make_context: MakeContext, base: Artifact, server: FakeServer, tmp_path: Path
) -> None:
    server.behave = lambda body, _number: Answer(f"{body['messages'][-1]['content']} {body['seed']}", usage={
        "prompt_tokens": 5, "completion_tokens": body["seed"] % 7})  # fmt: skip
    result, context = asked_of_a_server(make_context, tmp_path, base, server)
    prompts = {one.id: one for one in read_records(context.output / "prompts.jsonl", Prompt)}
    responses = read_records(context.output / "responses.jsonl", Response)
    assert (len(prompts), len(responses), len(server.requests)) == (4, 12, 12)
    assert len({body["seed"] for body in server.requests}) == 12
    for body in server.requests:
        sent = {name: body[name] for name in ("model", "temperature", "top_p", "stop", "max_tokens")}
        assert sent == {"model": "big", "temperature": 0.8, "top_p": 0.9, "stop": ["."], "max_tokens": 12}
        assert body["seed"] < 2**31
    for one in responses:
        question, _, seed = one.text.rpartition(" ")
        assert question == prompts[one.prompt_id].messages[-1].content
        assert one.tokens == int(seed) % 7
        assert one.model == f"server {server.url}, model big"
    assert result.metrics["failed"] == 0
    again = asked_of_a_server(make_context, tmp_path, base, server)[0]  # what was paid for is kept
    assert len(server.requests) == 12
    assert again.metrics == result.metrics


def test_a_server_that_answers_nothing_ends_the_stage(
    make_context: MakeContext, base: Artifact, server: FakeServer, tmp_path: Path
) -> None:
    server.behave = lambda _body, _number: Answer(status=503)
    with pytest.raises(StageError, match="gave no answer"):
        asked_of_a_server(make_context, tmp_path, base, server)


def test_a_budget_is_one_for_all_of_a_stages_questions(
    make_context: MakeContext, base: Artifact, server: FakeServer, tmp_path: Path
) -> None:
    """12 answers of 12 tokens each in 12 batches; the budget of one batch alone would last for all of them."""
    server.behave = lambda _body, number: Answer(str(number))
    endpoint = {"url": server.url, "model": "big", "budget": {"tokens": 100}}
    with pytest.raises(StageError, match="budget of 100 tokens is spent"):
        asked_of_a_server(make_context, tmp_path, base, server, endpoint=endpoint, batch_size=3)


def half(teacher: Path, folder: Path, layers: int) -> Path:
    """A student with every other layer, first and last, made by hand of the state dict."""
    whole = AutoModelForCausalLM.from_pretrained(teacher)
    config = whole.config.__class__.from_pretrained(teacher)
    config.num_hidden_layers = 2
    small = AutoModelForCausalLM.from_config(config)
    state = {}
    for name, weight in whole.state_dict().items():
        if ".layers." not in name:
            state[name] = weight
        for place, kept in enumerate((0, layers - 1)):
            if f".layers.{kept}." in name:
                state[name.replace(f".layers.{kept}.", f".layers.{place}.")] = weight
    small.load_state_dict(state)
    small.save_pretrained(folder)
    return folder


def four_layers(folder: Path, tiny: Path) -> Path:
    from transformers import LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    config = AutoModelForCausalLM.from_pretrained(tiny).config
    config.num_hidden_layers = 4
    config.layer_types = None
    torch.manual_seed(3)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_student_of_half_the_layers_imitates_the_best_answers(
    make_context: MakeContext, tiny_model: Path, tmp_path: Path
) -> None:
    """Against a bare loop: transformers' own sampling is greedy here, the reward is counted by hand, and the first loss
    is torch's cross-entropy of the best answers under a student that was cut by hand."""
    folder = four_layers(tmp_path / "teacher", tiny_model)
    teacher = artifact_of("base", "model", folder)
    settings = {"kind": "sample", "model": "base", "per_prompt": 2, "limit": 6, "batch_size": 4,
                "sampling": {"temperature": 1.0, "max_new_tokens": 6}}  # fmt: skip
    changes = {"stages.responses": settings, "stages.sft": {"kind": "sft"}}
    context = make_context(tmp_path / "drawn", "responses", {"base": teacher}, changes=changes)
    sample(SampleStage.model_validate(settings), context)
    drawn = artifact_of("responses", "responses", context.output)
    reward = {"kind": "length_penalty", "unit": "characters", "free": 0, "full": 40}
    picked = RejectionSamplingStage.model_validate(
        {"kind": "rejection_sampling", "responses": "responses", "rewards": [reward]}
    )
    # answers that were cut off are left out, and the tiny model ends none: they are marked as ended
    responses = [one.model_copy(update={"finished": True}) for one in read_records(context.output / "responses.jsonl",
                                                                                  Response)]  # fmt: skip
    (context.output / "responses.jsonl").write_text("".join(one.model_dump_json() + "\n" for one in responses))
    chosen = make_context(tmp_path / "chosen", "rejection_sampling", {"responses": drawn},
                          changes=changes | {"stages.rejection_sampling": picked.model_dump(mode="json")})  # fmt: skip
    choose(picked, chosen)
    best: dict[str, str] = {}
    for one in responses:  # the shorter the better; of equals the first
        if one.text.strip() and (one.prompt_id not in best or len(one.text) < len(best[one.prompt_id])):
            best[one.prompt_id] = one.text
    kept = read_records(chosen.output / "demonstrations.jsonl", Demonstration)
    assert sorted(one.messages[-1].content for one in kept) == sorted(best.values())

    taught = SftStage.model_validate(
        {"kind": "sft", "demonstrations": "chosen", "lora": None, "layers": 0.5, "epochs": 8, "warmup": 0,
         "schedule": "constant", "learning_rate": 3e-3, "batch_size": len(kept), "max_length": 64}
    )  # fmt: skip
    made = artifact_of("chosen", "demonstrations", chosen.output)
    context = make_context(tmp_path / "student", "sft", {"base": teacher, "chosen": made},
                           changes={"stages.sft": taught.model_dump(mode="json")})  # fmt: skip
    result = imitate(taught, context)
    losses = [value for _step, value in result.curves["loss"]]
    student = AutoModelForCausalLM.from_pretrained(half(folder, tmp_path / "cut", 4)).eval()
    assert losses[0] == pytest.approx(cross_entropy(student, folder, kept), rel=1e-4)
    assert losses[-1] < 0.7 * losses[0]
    learned = AutoModelForCausalLM.from_pretrained(context.output).eval()
    assert learned.config.num_hidden_layers == 2
    assert cross_entropy(learned, folder, kept) < 0.7 * losses[0]


def cross_entropy(model: Any, folder: Path, demonstrations: list[Demonstration]) -> float:
    """Nats per token of the answers, their ends included."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    total, count = 0.0, 0
    for one in demonstrations:
        user, answer = (message.content for message in one.messages)
        prompt = tokenizer(f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        own = tokenizer(f"{answer}<|im_end|>")["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + own])).logits[0].double()
        logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        total -= float(logprobs.gather(-1, torch.tensor(own)[:, None]).sum())
        count += len(own)
    assert math.isfinite(total)
    return total / count


def test_the_base_itself_can_lose_layers(make_context: MakeContext, tiny_model: Path, tmp_path: Path) -> None:
    """A student that is the base under its own name was whole again: the base took its place."""
    teacher = artifact_of("base", "model", four_layers(tmp_path / "teacher", tiny_model))
    stage = SftStage.model_validate({"kind": "sft", "lora": None, "layers": 0.5, "epochs": 1, "max_length": 64})
    context = make_context(tmp_path / "run", "sft", {"base": teacher},
                           changes={"stages.sft": stage.model_dump(mode="json")})  # fmt: skip
    imitate(stage, context)
    assert json.loads((context.output / "config.json").read_text())["num_hidden_layers"] == 2


def test_a_recipe_with_a_server_for_a_teacher_is_read() -> None:
    recipe = Recipe.model_validate(
        {"name": "t", "model": {"base": "x"}, "stages": {"drawn": {"kind": "sample", "endpoint": ENDPOINT}}}
    )
    assert recipe.stages["drawn"].inputs() == {}
