"""Sampling from a vLLM server, with the weights that this process trains.

The server holds the base model; a policy reaches it as a LoRA adapter in a folder that both can read, under a name that
is the digest of its weights. So a rollout cannot be drawn with other weights than those it asks for: an old adapter has
another name, and the answer says which one it was drawn with.

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve BASE \\
        --enable-lora --max-lora-rank 16 --logprobs-mode processed_logprobs

The last option makes log-probabilities those at the sampling temperature. What it leaves out: beams, and policies whose
whole weights are trained, which do not travel as adapters.
"""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch
from peft import PeftModel

from alignment.durable_files import folder_digest, temporary_beside
from alignment.errors import NotFiniteError, StageError
from alignment.models.load import save_policy
from alignment.recipe.resources import Vllm
from alignment.records import Artifact, Sampling
from alignment.rollouts.engine import Completion

TRIES = 4  # of a request that fails for a reason that may pass
PAUSE = 1.0  # seconds before the second try, doubled before each further one


class VllmEngine:
    """An :class:`alignment.rollouts.engine.Engine` over a vLLM server.

    ``policy`` is the model in training, whose adapter :meth:`sync` sends; ``adapter`` an artifact to sample from as it
    is; with neither, the base. ``folder`` is where adapters in training are written for the server.
    Raises StageError where there is no server, or it serves no model.
    """

    def __init__(
        self,
        settings: Vllm,
        tokenizer: Any,
        *,
        stop_ids: set[int],
        base: Artifact,
        folder: Path,
        policy: Any | None = None,
        adapter: Artifact | None = None,
    ) -> None:
        if policy is not None and not isinstance(policy, PeftModel):
            raise StageError("vLLM takes a policy in training as an adapter: set lora, or leave resources.vllm out")
        self.settings, self.tokenizer, self.base, self.policy = settings, tokenizer, base, policy
        self.stop_ids = sorted(stop_ids)
        self.folder = Path(settings.adapters) if settings.adapters else folder
        self._client = httpx.Client(base_url=settings.url, timeout=settings.timeout)
        self.model: str = settings.model or self._served()
        self._loaded: tuple[str, Path] | None = None
        if adapter is not None:
            self._load(adapter.digest[:16], Path(adapter.path))

    def sync(self) -> None:
        """Has the server sample from the policy as it is now."""
        if self.policy is None:
            return
        partial = temporary_beside(self.folder / "vllm-policy")  # runs may share a server, and so this folder
        partial.mkdir(parents=True)
        save_policy(self.policy, self.tokenizer, self.base, partial)
        name = folder_digest(partial)[:16]
        target = self.folder / f"vllm-{name}"
        if self._loaded is not None and self._loaded[0] == f"policy-{name}":
            shutil.rmtree(partial)
            return
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        before = self._loaded
        self._load(name, target)
        if before is not None:
            self._post("/v1/unload_lora_adapter", {"lora_name": before[0]})
            shutil.rmtree(before[1], ignore_errors=True)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: Sampling,
        seeds: Sequence[int],
        per_prompt: int = 1,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        """See :meth:`alignment.rollouts.engine.Engine.generate`. Raises StageError where the server fails at it."""
        if len(seeds) != len(prompts) * per_prompt:
            raise ValueError(f"{len(prompts)} prompts × {per_prompt} samples need as many seeds, not {len(seeds)}")
        if sampling.beams > 1:
            raise StageError("vLLM draws here one answer at a time: no beams")
        self.sync()
        requests = [self._request(prompts[place // per_prompt], sampling, seed) for place, seed in enumerate(seeds)]
        completions: list[Completion] = []
        with ThreadPoolExecutor(self.settings.concurrent) as pool:
            for completion in pool.map(self._complete, requests):
                completions.append(completion)
                if on_progress is not None:
                    on_progress(len(completions), len(requests))
        return [completions[i : i + per_prompt] for i in range(0, len(completions), per_prompt)]

    def _request(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> dict[str, Any]:
        return {
            "model": self._loaded[0] if self._loaded else self.model,
            "prompt": list(prompt),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "stop": list(sampling.stop),
            "stop_token_ids": self.stop_ids,
            "seed": seed,
            "logprobs": 0,
            "return_token_ids": True,
        }

    def _complete(self, request: dict[str, Any]) -> Completion:
        answer = self._post("/v1/completions", request)
        if answer["model"] != request["model"]:
            raise StageError(f"the vLLM server drew from {answer['model']}, and was asked for {request['model']}")
        (choice,) = answer["choices"]
        tokens = choice["token_ids"]
        if tokens is None:
            raise StageError("the vLLM server returns no token ids: it is older than return_token_ids")
        values = choice["logprobs"]["token_logprobs"]
        if not all(value is not None and math.isfinite(value) for value in values):
            raise NotFiniteError("the vLLM server's log-probabilities are not finite numbers")
        logprobs = torch.tensor(values, dtype=torch.float32)
        return Completion(tuple(tokens), choice["text"], choice["finish_reason"] == "stop", logprobs)

    def _served(self) -> str:
        """The name of the base model there, which is the first that the server lists."""
        models = self._send("GET", "/v1/models", None).json()["data"]
        if not models:
            raise StageError(f"the vLLM server at {self.settings.url} serves no model")
        name: str = models[0]["id"]
        return name

    def _load(self, digest: str, folder: Path) -> None:
        name = f"policy-{digest}"
        if name not in {model["id"] for model in self._send("GET", "/v1/models", None).json()["data"]}:
            self._send("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder.resolve())})
        self._loaded = name, folder

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        response = self._send("POST", path, body)
        return response.json() if response.headers.get("content-type", "").startswith("application/json") else None

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """A request, tried again where the server is away or overloaded: its seed makes the second try the first."""
        problem = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                response = self._client.request(method, path, json=body)
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if response.status_code < 400:
                return response
            problem = f"{response.status_code}: {response.text[:300]}"
            if response.status_code < 500 and response.status_code != 429:
                break
        raise StageError(f"the vLLM server at {self.settings.url} failed at {path}: {problem}")
