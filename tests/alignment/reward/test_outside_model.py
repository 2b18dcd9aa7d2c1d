"""A reward model that no stage has made: of a folder, of a hub, behind a server; each reads by its own template."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from alignment.checks.rewards import reward_faults
from alignment.errors import InputError, StageError
from alignment.recipe.files import resolve_data
from alignment.recipe.judges import ModelServer
from alignment.recipe.load import load_recipe
from alignment.recipe.rewards.reward_models import ModelReward
from alignment.records import Message, Prompt
from alignment.reward.outside_model import outside_reward, reward_model_problem, server_reward
from alignment.reward.protocol import RewardInput
from tests.conftest import MakeRecipe

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
ASKED = Prompt(id="1", messages=(Message(role="user", content="Who saw the cat?"),))
ANSWERS = [RewardInput(ASKED, text, 5) for text in ("The dog.", "the owl saw it today", "It is red.")]


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A reward model with a template of its own, whose turns end otherwise than the policy's, and a drawn head."""
    where = tmp_path / "rm"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id or 0
    model.save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


@pytest.fixture
def run(make_recipe: MakeRecipe, tmp_path: Path) -> Any:
    return load_recipe(make_recipe(tmp_path / "recipe"), ["model.dtype=float32"]).run_settings()


def test_a_folders_scores_are_those_of_its_own_template_and_tokenizer(folder: Path, run: Any, tmp_path: Path) -> None:
    """Each answer alone, as a model card says it: the whole conversation rendered, and one forward pass."""
    reward = outside_reward(ModelReward(kind="model", folder=str(folder)), run, folder, tmp_path / "kept")
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    for answer in ANSWERS:
        turns = [{"role": "user", "content": ASKED.messages[0].content}, {"role": "assistant", "content": answer.text}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        assert text.endswith("<|im_end|>\n")
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            expected.append(float(model(input_ids=ids).logits[0, 0]))
    assert reward(ANSWERS) == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 5) for value in expected}) == 3


def test_a_folder_that_is_no_reward_model_is_said_in_one_line(
    folder: Path, tiny_model: Path, run: Any, tmp_path: Path
) -> None:
    assert reward_model_problem(folder) is None
    assert reward_model_problem(tmp_path / "none") == f"no folder {tmp_path / 'none'}"
    assert reward_model_problem(tmp_path) == f"{tmp_path} is no model's folder"
    assert "gives no score" in str(reward_model_problem(tiny_model))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a", "1": "b"}, "num_labels": 2}))
    assert reward_model_problem(folder) == "it has 2 outputs, and a reward is one number"
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        path = folder / name
        if path.exists() and name.endswith(".jinja"):
            path.unlink()
        elif path.exists():
            path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"}))
    assert reward_model_problem(folder) == "the model has no chat template"
    with pytest.raises(InputError, match="no chat template"):
        outside_reward(ModelReward(kind="model", folder=str(folder)), run, folder, tmp_path / "kept")


def test_a_head_that_is_not_in_the_file_is_refused(folder: Path, run: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "score.weight"}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StageError, match=r"holds no score\.weight: it is no reward model"):
        outside_reward(ModelReward(kind="model", folder=str(folder)), run, folder, tmp_path / "kept")


def test_check_says_what_is_wrong_before_anything_runs(
    folder: Path, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faults(reward: dict[str, Any]) -> list[str]:
        grpo = {"kind": "grpo", "model": "base", "rewards": [{"kind": "model", **reward}]}
        path = make_recipe(tmp_path / "recipe", stages=("sft",), changes={"stages.grpo": grpo})
        recipe = load_recipe(path)
        return [str(fault) for fault in reward_faults(recipe, resolve_data(recipe, path), [])]

    assert faults({"folder": str(folder)}) == []
    (line,) = faults({"folder": "nowhere"})
    assert line.startswith("stages.grpo.rewards.0.folder: no folder ")
    assert line.endswith("give a sequence classification model with one output and a chat template")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (line,) = faults({"hub": "nobody/no-such-reward-model"})
    assert line.startswith("stages.grpo.rewards.0.hub: no model 'nobody/no-such-reward-model'")
    (line,) = faults({"endpoint": {"url": "http://127.0.0.1:1/v1", "model": "rm", "api_key_env": "NO_SUCH_RM_KEY"}})
    assert line.startswith("stages.grpo.rewards.0.endpoint.api_key_env: the environment variable NO_SUCH_RM_KEY")
    for wrong, said in (
        ({}, "name one of model, folder, hub and endpoint"),
        ({"folder": "a", "hub": "b/c"}, "name one of model, folder, hub and endpoint"),
        ({"folder": "a", "revision": "main"}, "revision is of a hub's model"),
        ({"endpoint": {"url": "http://user:pass@host/v1", "model": "rm"}}, "without a user and password"),
    ):
        with pytest.raises(InputError, match=said):
            faults(wrong)


class Scorer(BaseHTTPRequestHandler):
    """Scores a conversation by the length of its last message; ``broken`` answers come first."""

    broken: ClassVar[list[tuple[int, bytes]]] = []
    seen: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({"path": self.path, **body})
        status, content = 200, json.dumps({"data": [{"data": [len(body["messages"][-1]["content"]) / 7]}]}).encode()
        if self.broken:
            status, content = self.broken.pop(0)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


@pytest.fixture
def server() -> Iterator[str]:
    Scorer.broken.clear()
    Scorer.seen.clear()
    http = HTTPServer(("127.0.0.1", 0), Scorer)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/v1"
    http.shutdown()
    http.server_close()


def test_a_server_is_sent_messages_and_its_scores_are_kept(server: str, tmp_path: Path) -> None:
    asked = server_reward(ModelServer(url=server, model="rm"), tmp_path)
    assert asked(ANSWERS) == [len(answer.text) / 7 for answer in ANSWERS]
    assert {one["path"] for one in Scorer.seen} == {"/v1/pooling"}
    assert Scorer.seen[0]["messages"][0] == {"role": "user", "content": "Who saw the cat?"}
    assert {one["messages"][1]["role"] for one in Scorer.seen} == {"assistant"}
    before = len(Scorer.seen)
    again = server_reward(ModelServer(url=server, model="rm"), tmp_path)
    assert again(ANSWERS) == asked(ANSWERS)
    assert len(Scorer.seen) == before  # what was scored is not asked again


def test_a_server_that_is_busy_is_asked_again_and_one_that_gives_no_score_ends_the_stage(
    server: str, tmp_path: Path
) -> None:
    settings = ModelServer(url=server, model="rm", retries=2, max_wait=0.01)
    Scorer.broken.append((503, b"busy"))
    assert server_reward(settings, tmp_path / "a")(ANSWERS[:1]) == [len(ANSWERS[0].text) / 7]
    for content, said in (
        (b'{"data": [{"data": [1.0, 2.0]}]}', "no single score"),
        (b'{"data": [{"data": ["NaN"]}]}', "no finite score"),
        (b"<html>", "no single score"),
        (b'{"data": [{"data": [true]}]}', "no finite score"),
    ):
        Scorer.broken.append((200, content))
        with pytest.raises(StageError, match=said):
            server_reward(settings, tmp_path / "b")(ANSWERS[:1])
    Scorer.broken += [(503, b"busy")] * 3
    with pytest.raises(StageError, match="gave no score to 1 of 1 answers"):
        server_reward(settings, tmp_path / "c")(ANSWERS[:1])
