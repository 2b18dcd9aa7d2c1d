"""A conversation that is read on from, against `model.generate` of each turn's whole prompt."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from alignment.errors import StageError
from alignment.records import Sampling
from alignment.rollouts.prefix_cache import PrefixCache, keeps_prefixes
from alignment.rollouts.stream import complete, stream
from alignment.rollouts.transformers_engine import TransformersEngine

EOS = 1
TINY = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
        "bos_token_id": 0, "eos_token_id": EOS, "pad_token_id": 2}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**TINY),
    "qwen3": Qwen3Config(**TINY, head_dim=8),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=1024, bos_token_id=0,
                       eos_token_id=EOS),
    "mistral-sliding": MistralConfig(**TINY, sliding_window=6),
    "mamba": MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, expand=2),
    # Frequencies change for every position once a row is longer than 16 tokens.
    "llama-dynamic": LlamaConfig(**TINY | {"max_position_embeddings": 16},
                                 rope_parameters={"rope_type": "dynamic", "factor": 8.0, "rope_theta": 10000.0}),
}  # fmt: skip
GREEDY = Sampling(temperature=0.0, max_new_tokens=12)


def build(name="llama", attention=None):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention)
    for parameter in model.parameters():  # a peaked distribution
        parameter.data.mul_(3.0) if parameter.dim() > 1 else None
    return model.eval()


def engine_of(model, stop=EOS, **options):
    words = {"</s>" if i == EOS else f"w{i}": i for i in range(64)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="w3")
    return TransformersEngine(model, tokenizer, stop_ids={stop}, **options)


def reference(model, prompt, **options):
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=2, do_sample=False,
                            max_new_tokens=12, **options)  # fmt: skip
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("name", "attention"), [("llama", "sdpa"), ("qwen3", "sdpa"), ("gpt2", "sdpa"), ("llama", "eager")]
)
def test_every_turn_is_generates_token_for_token_and_only_its_new_end_is_read(name, attention):
    model = build(name, attention)
    cache = PrefixCache(engine_of(model))
    read = []
    model.register_forward_pre_hook(
        lambda _module, _args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    talk = [7, 8, 9, 10, 11, 12]
    for turn in range(5):
        kept = 0 if turn == 0 else len(talk) - 3  # a turn's last token was said and not read, and two are new
        read.clear()
        found = complete(cache, talk, sampling=GREEDY, seed=0)
        assert read[0] == len(talk) - kept
        assert read[1:] == [1] * (len(found.tokens) - 1)
        assert list(found.tokens) == reference(model, talk)
        talk = [*talk, *found.tokens, 20 + turn, 30 + turn]
    assert cache.reused > 0.6 * cache.asked


def test_a_talk_whose_earlier_turns_are_written_otherwise_is_read_from_there():
    model = build()
    cache = PrefixCache(engine_of(model))
    first = list(range(5, 45))
    for talk, reused in [
        (first, 0),
        ([*first[:30], 60, *first[31:], 61], 30),  # one token of what was read is another
        (first[:10], 9),  # retried from within: the last token is read for what follows it
        ([50, *first], 0),
        ([*range(3, 60)] * 6, 0),  # beyond the room that a cache has at first
        ([*([*range(3, 60)] * 6), 5], 342),
    ]:
        before = cache.reused
        assert list(complete(cache, talk, sampling=GREEDY, seed=0).tokens) == reference(model, talk)
        assert cache.reused - before == reused


def test_what_is_drawn_is_what_the_engine_draws_for_the_seed():
    engine = engine_of(build())
    cache = PrefixCache(engine)
    drawn = Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.3, max_new_tokens=12)
    talk = [7, 8, 9]
    for seed in range(4):
        [[whole]] = engine.generate([talk], sampling=drawn, seeds=[seed])
        found = complete(cache, talk, sampling=drawn, seed=seed)
        assert (found.tokens, found.text, found.finished) == (whole.tokens, whole.text, whole.finished)
        talk = [*talk, *found.tokens, 20]
    texts = list(stream(engine, talk, sampling=drawn, seed=9, cache=cache))
    [[whole]] = engine.generate([talk], sampling=drawn, seeds=[9])
    assert (texts[-1], len(texts)) == (whole.text, len(whole.tokens))


def test_an_interrupted_turn_leaves_nothing_behind():
    model = build()
    cache = PrefixCache(engine_of(model))
    talk = [*range(5, 25)]
    complete(cache, talk, sampling=GREEDY, seed=0)

    def interrupt(*_args):
        raise KeyboardInterrupt

    handle = model.model.layers[1].register_forward_pre_hook(interrupt)  # the first layer has read the tokens then
    with pytest.raises(KeyboardInterrupt):
        complete(cache, [*talk, 40, 41], sampling=GREEDY, seed=0)
    handle.remove()
    assert list(complete(cache, [*talk, 42], sampling=GREEDY, seed=0).tokens) == reference(model, [*talk, 42])


@pytest.mark.parametrize("name", ["mistral-sliding", "mamba"])
def test_states_and_windows_are_not_kept(name):
    engine = engine_of(build(name))
    assert not keeps_prefixes(engine)
    with pytest.raises(StageError, match="recurrent states or sliding windows"):
        PrefixCache(engine)


def test_positions_that_depend_on_the_length_are_read_anew_where_they_change():
    model = build("llama-dynamic")
    cache = PrefixCache(engine_of(model))
    talk = [7, 8, 9, 10]
    reused = []
    for turn in range(4):
        before = cache.reused
        found = complete(cache, talk, sampling=GREEDY, seed=0)
        reused.append(cache.reused - before)
        assert list(found.tokens) == reference(model, talk)
        talk = [*talk, *found.tokens, 20 + turn]
    assert reused[1:] == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "attention", "shares"),
    [("llama", "sdpa", True), ("llama", "eager", True), ("qwen3", "sdpa", True), ("gpt2", "sdpa", True),
     ("mistral-sliding", "sdpa", False), ("mamba", None, False), ("llama-dynamic", "sdpa", False)],
)  # fmt: skip
def test_what_a_batch_begins_with_is_read_once(name, attention, shares):
    model = build(name, attention)
    system = [*range(5, 45)]
    prompts = [[*system, 7, 8, 9, 10], [*system, 12], [*system, 50, 51], [*system, 12], system]
    stop = reference(model, prompts[0])[3]  # so that a row ends early
    read = []
    model.register_forward_pre_hook(
        lambda _module, _args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    found = engine_of(model, stop, share_prefixes=True).generate(
        prompts, sampling=GREEDY, seeds=range(10), per_prompt=2
    )
    # Of the shortest prompt, which the others go on from, the last token is read for what follows it.
    if shares:
        assert read[:2] == [(1, 39), (4, 5)]
    elif name != "mamba":  # which reads prompts of several lengths apart
        assert read[0] == (4, 44)
    if name == "llama-dynamic":
        return  # a row's positions depend on the longest beside it, with or without
    for prompt, completions in zip(prompts, found, strict=True):
        expected = reference(model, prompt, eos_token_id=stop)
        assert [list(completion.tokens) for completion in completions] == [expected] * 2


def test_a_short_common_beginning_is_not_worth_a_pass_of_its_own():
    model = build()
    read = []
    model.register_forward_pre_hook(
        lambda _module, _args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    engine_of(model, share_prefixes=True).generate([[5, 6, 7], [5, 6, 8, 9]], sampling=GREEDY, seeds=range(2))
    assert read[0] == (2, 4)
