"""The client of a vLLM server, against a server on a real socket that speaks vLLM's protocol over the tiny model."""

import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel

from alignment.chat import render_prompt
from alignment.data.prompts import load_prompts
from alignment.errors import StageError
from alignment.models.adapters import add_lora
from alignment.models.families import stop_ids
from alignment.models.load import load_policy
from alignment.recipe.base import Lora
from alignment.recipe.resources import Vllm
from alignment.records import Sampling
from alignment.rollouts import vllm_engine
from alignment.rollouts.transformers_engine import TransformersEngine
from alignment.rollouts.vllm_engine import VllmEngine

GREEDY = Sampling(temperature=0.0, max_new_tokens=8)


@pytest.fixture
def context(base, sft, make_context, tmp_path):
    return make_context(tmp_path, "responses", {"base": base, "sft": sft})


@pytest.fixture
def loaded(base, context):
    model, tokenizer = load_policy(base, base, context.run)
    prompts, _ = load_prompts(context.data["prompts"], 0.3)
    return model, tokenizer, [render_prompt(tokenizer, prompt.messages) for prompt in prompts[:3]]


@pytest.fixture
def server(loaded, base):
    """Serves the tiny model as "tiny", and adapters as they are sent. ``failures`` are statuses to answer first."""
    model, tokenizer, _ = loaded
    state = SimpleNamespace(failures=[], loaded=[], unloaded=[], drawn=[], stale=False, lock=threading.Lock())
    plain = copy.deepcopy(model)
    adapters = {}

    class Handler(BaseHTTPRequestHandler):
        def reply(self, status, body):
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.reply(200, {"data": [{"id": name} for name in ("tiny", *adapters)]})

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with state.lock:
                if state.failures:
                    self.reply(state.failures.pop(0), {"error": "busy"})
                    return
                {"/v1/load_lora_adapter": self.load, "/v1/unload_lora_adapter": self.unload,
                 "/v1/completions": self.complete}[self.path](asked)  # fmt: skip

        def load(self, asked):
            adapters[asked["lora_name"]] = PeftModel.from_pretrained(copy.deepcopy(plain), asked["lora_path"])
            state.loaded.append(asked["lora_name"])
            self.reply(200, "ok")

        def unload(self, asked):
            del adapters[asked["lora_name"]]
            state.unloaded.append(asked["lora_name"])
            self.reply(200, "ok")

        def complete(self, asked):
            name = "tiny" if state.stale else asked["model"]
            state.drawn.append(name)
            engine = TransformersEngine(adapters.get(name, plain), tokenizer, stop_ids=set(asked["stop_token_ids"]))
            names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
            sampling = Sampling(max_new_tokens=asked["max_tokens"], stop=tuple(asked["stop"]),
                                **{name: asked[name] for name in names})  # fmt: skip
            ((drawn,),) = engine.generate([asked["prompt"]], sampling=sampling, seeds=[asked["seed"]])
            choice = {
                "text": drawn.text,
                "token_ids": list(drawn.tokens),
                "logprobs": {"token_logprobs": drawn.logprobs.tolist()},
                "finish_reason": "stop" if drawn.finished else "length",
            }
            self.reply(200, {"model": name, "choices": [choice]})

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield state
    http.shutdown()


@pytest.fixture
def engine_of(loaded, server, base, tmp_path):
    model, tokenizer, _ = loaded

    def engine_of(**options):
        settings = Vllm(url=server.url, concurrent=2, timeout=30)
        return VllmEngine(
            settings, tokenizer, stop_ids=stop_ids(model, tokenizer), base=base, folder=tmp_path / "push", **options
        )

    return engine_of


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.8, max_new_tokens=6)])
def test_what_comes_back_is_what_this_process_would_draw(sampling, engine_of, loaded):
    model, tokenizer, prompts = loaded
    here = TransformersEngine(model, tokenizer, stop_ids=stop_ids(model, tokenizer))
    options = {"sampling": sampling, "seeds": list(range(6)), "per_prompt": 2}
    seen = []
    found = engine_of().generate(prompts, **options, on_progress=lambda done, total: seen.append((done, total)))
    for mine, theirs in zip(here.generate(prompts, **options), found, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert (a.tokens, a.text, a.finished) == (b.tokens, b.text, b.finished)
            torch.testing.assert_close(a.logprobs, b.logprobs, atol=1e-4, rtol=1e-4)
    assert seen[-1] == (6, 6)


def test_rollouts_use_the_new_weights_after_each_update(engine_of, loaded, server, base, context):
    """The field's most common silent fault: what is sampled must follow what is trained, update by update."""
    _, tokenizer, prompts = loaded
    policy, _ = load_policy(base, base, context.run, trainable=True)
    policy = add_lora(policy, Lora(rank=4, alpha=8))
    engine = engine_of(policy=policy)
    here = TransformersEngine(policy, tokenizer, stop_ids=stop_ids(policy, tokenizer))
    torch.manual_seed(0)
    for update in range(3):
        theirs = engine.generate(prompts, sampling=GREEDY, seeds=[0, 0, 0])
        mine = here.generate(prompts, sampling=GREEDY, seeds=[0, 0, 0])
        assert [one.tokens for (one,) in theirs] == [one.tokens for (one,) in mine]
        torch.testing.assert_close(theirs[0][0].logprobs, mine[0][0].logprobs, atol=1e-4, rtol=1e-4)
        assert server.drawn[-1] == server.loaded[-1]
        assert len(set(server.loaded)) == update + 1
        assert server.unloaded == server.loaded[:-1]
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.add_(torch.randn_like(parameter), alpha=0.3)
    engine.generate(prompts[:1], sampling=GREEDY, seeds=[0])
    loads = len(server.loaded)
    engine.generate(prompts[:1], sampling=GREEDY, seeds=[0])
    assert len(server.loaded) == loads  # nothing has changed: nothing is sent


def test_an_adapter_is_sampled_from_as_it_is(engine_of, loaded, sft, base, context):
    _, tokenizer, prompts = loaded
    policy, _ = load_policy(sft, base, context.run)
    here = TransformersEngine(policy, tokenizer, stop_ids=stop_ids(policy, tokenizer))
    theirs = engine_of(adapter=sft).generate(prompts, sampling=GREEDY, seeds=[0, 0, 0])
    mine = here.generate(prompts, sampling=GREEDY, seeds=[0, 0, 0])
    assert [one.tokens for (one,) in theirs] == [one.tokens for (one,) in mine]


def test_a_busy_server_is_asked_again_and_a_refusal_is_said(engine_of, loaded, server, monkeypatch):
    monkeypatch.setattr(vllm_engine, "PAUSE", 0.01)
    engine, prompts = engine_of(), loaded[2]
    server.failures = [503, 429]
    assert len(engine.generate(prompts[:1], sampling=GREEDY, seeds=[0])) == 1
    server.failures = [400]
    with pytest.raises(StageError, match=r"failed at /v1/completions: 400: .*busy"):
        engine.generate(prompts[:1], sampling=GREEDY, seeds=[0])
    server.failures = [500] * 10
    with pytest.raises(StageError, match="500"):
        engine.generate(prompts[:1], sampling=GREEDY, seeds=[0])


def test_an_answer_from_other_weights_stops_the_run(engine_of, loaded, server, sft):
    engine = engine_of(adapter=sft)
    server.stale = True
    with pytest.raises(StageError, match="drew from tiny, and was asked for policy-"):
        engine.generate(loaded[2][:1], sampling=GREEDY, seeds=[0])


def test_no_server_is_an_error_that_names_it(loaded, base, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_engine, "PAUSE", 0.01)
    with pytest.raises(StageError, match=r"http://127\.0\.0\.1:9 failed at /v1/models: ConnectError"):
        VllmEngine(Vllm(url="http://127.0.0.1:9"), loaded[1], stop_ids={1}, base=base, folder=tmp_path)


def test_whole_weights_do_not_travel(loaded, base, engine_of):
    with pytest.raises(StageError, match="as an adapter"):
        engine_of(policy=loaded[0])
    with pytest.raises(StageError, match="no beams"):
        engine_of().generate(loaded[2][:1], sampling=Sampling(temperature=0, beams=2), seeds=[0])
