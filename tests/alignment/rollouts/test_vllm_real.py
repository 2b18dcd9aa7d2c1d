"""A real vLLM server: PPO trains an adapter here, and the server samples from it, update after update.

vLLM wants an environment of its own. ``RLHF_FLOWS_VLLM`` names that one's Python; without it this is skipped.
"""

import os
import socket
import subprocess
import time

import httpx
import pytest
import torch

from alignment.chat import render_prompt
from alignment.data.prompts import load_prompts
from alignment.durable_files import folder_digest
from alignment.models.adapters import add_lora
from alignment.models.embedded import convert
from alignment.models.families import stop_ids
from alignment.models.load import load_policy
from alignment.recipe.base import Lora
from alignment.recipe.resources import Vllm
from alignment.records import Artifact, Sampling
from alignment.rollouts.transformers_engine import TransformersEngine
from alignment.rollouts.vllm_engine import VllmEngine

pytestmark = pytest.mark.slow
START_SECONDS = 400


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm") / "smollm2"
    convert("smollm2-135m", folder)
    return Artifact(name="base", kind="model", version=1, digest=folder_digest(folder), path=str(folder), key="smollm2")


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    python = os.environ.get("RLHF_FLOWS_VLLM")
    if not python:
        pytest.skip("no vLLM: set RLHF_FLOWS_VLLM to the Python of an environment that has it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    options = ["--enable-lora", "--max-lora-rank", "16", "--logprobs-mode", "processed_logprobs", "--dtype", "float32",
               "--max-model-len", "512", "--enforce-eager", "--max-num-seqs", "16"]  # fmt: skip
    environment = os.environ | {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1",
    }  # fmt: skip
    environment.pop("PYTHONPATH", None)
    with log.open("w") as out:
        process = subprocess.Popen(
            [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model.path, "--port", str(port),
             "--served-model-name", "smollm2", *options],
            stdout=out, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def test_the_server_samples_what_is_trained(server, model, make_context, tmp_path):
    context = make_context(tmp_path, "responses", {"base": model})
    policy, tokenizer = load_policy(model, model, context.run, trainable=True)
    policy = add_lora(policy, Lora(rank=16, alpha=32))
    stops = stop_ids(policy, tokenizer)
    train, _ = load_prompts(context.data["prompts"], 0.3)
    prompts = [render_prompt(tokenizer, prompt.messages) for prompt in train[:4]]
    engine = VllmEngine(
        Vllm(url=server), tokenizer, stop_ids=stops, base=model, folder=tmp_path / "push", policy=policy
    )
    here = TransformersEngine(policy, tokenizer, stop_ids=stops)
    greedy, drawn = Sampling(temperature=0.0, max_new_tokens=12), Sampling(temperature=0.7, max_new_tokens=12)
    torch.manual_seed(0)
    answers = []
    for _update in range(3):
        theirs = engine.generate(prompts, sampling=greedy, seeds=[0] * 4)
        mine = here.generate(prompts, sampling=greedy, seeds=[0] * 4)
        assert [one.tokens for (one,) in theirs] == [one.tokens for (one,) in mine]
        answers.append([one.text for (one,) in theirs])
        for (one,), (other,) in zip(theirs, mine, strict=True):
            torch.testing.assert_close(one.logprobs, other.logprobs, atol=2e-2, rtol=0)
        for ids, (one,) in zip(prompts, engine.generate(prompts, sampling=drawn, seeds=[1, 2, 3, 4]), strict=True):
            logits = policy(input_ids=torch.tensor([[*ids, *one.tokens]])).logits[0, len(ids) - 1 : -1].float()
            logprobs = (logits / 0.7).log_softmax(-1)
            expected = logprobs.gather(-1, torch.tensor(one.tokens)[:, None]).squeeze(-1)
            torch.testing.assert_close(one.logprobs, expected.detach(), atol=2e-2, rtol=0)  # at the temperature
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.add_(torch.randn_like(parameter), alpha=0.02)
    assert answers[0] != answers[1] != answers[2]
