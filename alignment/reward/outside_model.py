"""A reward model that no stage has made: of a folder, of a hub, or behind a server.

It reads a conversation as its own template writes it, to the end of what it writes after an answer, and by its own
tokenizer: the policy's template does not matter. A server renders by itself and is sent messages.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from alignment.chat import load_tokenizer, render_conversation, render_response
from alignment.errors import Fault, InputError, StageError
from alignment.judges.answer_cache import Answers, Kept
from alignment.judges.openai_endpoint import EndpointAsker
from alignment.judges.prompts import JudgePrompt
from alignment.judges.protocol import wait_for
from alignment.models.device import pick_device
from alignment.models.hub import hub_files
from alignment.models.reward_model import score, widen_own_head
from alignment.models.weights import require_finite
from alignment.recipe.judges import ModelServer
from alignment.recipe.rewards.reward_models import ModelReward
from alignment.recipe.run_settings import ModelSettings, RunSettings
from alignment.records import Message
from alignment.reward.protocol import Reward, RewardInput

FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
LIGHT = ("*.json", "*.model", "*.txt", "*.jinja")  # what says whether it is a reward model, without its weights
REMEDY = "give a sequence classification model with one output and a chat template"


def reward_model_folder(settings: ModelReward, folder: Path | None, patterns: Sequence[str] = FILES) -> Path:
    """Where a reward model's files are. ``folder`` is that of ``settings.folder``. Raises InputError for a hub."""
    if folder is not None:
        return folder
    assert settings.hub is not None
    return hub_files(ModelSettings(base=settings.hub, revision=settings.revision), patterns, field="hub")


def reward_model_problem(folder: Path) -> str | None:
    """Why a folder holds no reward model that can be asked, in a line; None where it does. Weights are not read."""
    if not (folder / "config.json").is_file():
        return f"{folder} is no model's folder" if folder.is_dir() else f"no folder {folder}"
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        return f"its config.json is of no model that transformers knows: {str(error).splitlines()[0][:160]}"
    made = [str(name) for name in config.architectures or ()]
    if not any(name.endswith("ForSequenceClassification") for name in made):
        return f"it is a {', '.join(made) or 'model of no known kind'}, which gives no score"
    if config.is_encoder_decoder:
        return f"a {config.model_type} is an encoder with a decoder, whose scores are not read here"
    if config.num_labels != 1:
        return f"it has {config.num_labels} outputs, and a reward is one number"
    try:
        load_tokenizer(folder)
    except InputError as error:
        return error.faults[0].problem
    except (OSError, ValueError) as error:
        return f"its tokenizer cannot be loaded: {str(error).splitlines()[0][:160]}"
    return None


def outside_reward(settings: ModelReward, run: RunSettings, folder: Path | None, kept: Path) -> Reward:
    """The reward of a model from outside. ``kept`` is where a server's scores outlive the stage.

    Raises InputError where the model cannot be had, StageError where it is none or a server cannot be asked.
    """
    if settings.endpoint is not None:
        return server_reward(settings.endpoint, kept)
    where = reward_model_folder(settings, folder)
    if (problem := reward_model_problem(where)) is not None:
        raise InputError([Fault(problem, REMEDY, field="rewards")])
    tokenizer = load_tokenizer(where)
    model = _loaded(where, tokenizer, run)

    def scores(answers: Sequence[RewardInput]) -> list[float]:
        return score(model, tokenizer, [_row(tokenizer, one) for one in answers], batch_size=settings.batch_size)

    return scores


def _loaded(folder: Path, tokenizer: PreTrainedTokenizerBase, run: RunSettings) -> Any:
    """The model in evaluation mode. Raises StageError where its file has no head: one would be drawn at random."""
    dtype = getattr(torch, run.model.dtype)
    model, found = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        raise StageError(f"{folder} holds no {missing[0]}: it is no reward model")
    widen_own_head(model, folder)
    model.config.pad_token_id = tokenizer.pad_token_id  # by which it finds a text's last token
    model.to(pick_device(run.resources))
    require_finite(model.named_parameters(), str(folder))
    return model.eval()


def _row(tokenizer: PreTrainedTokenizerBase, answer: RewardInput) -> list[int]:
    """The tokens that the model reads: the whole conversation as its template writes it."""
    if not answer.finished:
        return render_response(tokenizer, answer.prompt.messages, answer.text, finished=False)
    return render_conversation(tokenizer, answer.prompt.messages, answer.text)


@dataclass(frozen=True, slots=True)
class NoWords:
    """A server that scores writes nothing."""

    max_tokens: int = 0
    temperature: float = 0.0


class ScoreAsker(EndpointAsker):
    """Asks a server for scores, in vLLM's protocol for models that pool."""

    path = "/pooling"

    def _body(self, question: JudgePrompt) -> dict[str, Any]:
        return {"model": self.endpoint.model, "messages": [message.model_dump() for message in question.messages]}

    def _completion(self, content: bytes, body: dict[str, Any]) -> Kept:
        try:
            answer = json.loads(content)
            (row,) = answer["data"]
            values = row["data"]
            (value,) = values if isinstance(values, list) else [values]
            number = float(value)
        except (ValueError, LookupError, TypeError, RecursionError):
            text = self._redacted(content.decode("utf-8", "replace"))
            raise StageError(f"the server {self.endpoint.url} answered with no single score: {text}") from None
        if isinstance(value, bool) or not math.isfinite(number):
            raise StageError(f"the server {self.endpoint.url} answered with {value}, which is no finite score")
        usage = answer.get("usage")
        used = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        if not isinstance(used, int) or isinstance(used, bool) or used < 0:
            used, _none = self.ledger.estimate(json.dumps(body["messages"]), 0)
        return Kept(text=repr(number), prompt_tokens=used, answer_tokens=0, money=self.ledger.cost(used, 0))


def server_reward(server: ModelServer, kept: Path, transport: Any = None) -> Reward:
    """The score that a server gives. Raises StageError where it cannot be asked, or gives no number."""
    asker = ScoreAsker(NoWords(), server, Answers(kept), transport)

    def scores(answers: Sequence[RewardInput]) -> list[float]:
        asked = [JudgePrompt((*one.prompt.messages, Message(role="assistant", content=one.text))) for one in answers]
        replies = wait_for(asker.ask(asked))
        found = [reply.text for reply in replies]
        if None in found:
            raise StageError(f"the server {server.url} gave no score to {found.count(None)} of {len(found)} answers")
        return [float(text) for text in found if text is not None]

    return scores
