"""The engine against `model.generate`, one prompt at a time: the reference that no batch can disturb."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    LogitsProcessorList,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    TopPLogitsWarper,
)

from alignment.records import Sampling
from alignment.rollouts.best_of_n import best_of
from alignment.rollouts.sampling import TopP, inverse_cdf, processors, uniforms
from alignment.rollouts.transformers_engine import TransformersEngine

VOCABULARY = 64
EOS = 1
TINY = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "bos_token_id": 0, "eos_token_id": EOS, "pad_token_id": 2}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**TINY),
    "qwen3": Qwen3Config(**TINY, head_dim=8),
    "mistral-sliding": MistralConfig(**TINY, sliding_window=6),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128,
                       bos_token_id=0, eos_token_id=EOS),
}  # fmt: skip
PROMPTS = [[5], [7, 8, 9, 10, 11], [12, 13, 14], [5, 6], [20, 21, 22, 23, 24, 25, 26, 27, 28], [12, 13, 14]]


def build(name="llama", *, attention="sdpa"):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention)
    for parameter in model.parameters():  # a peaked distribution, so that ends come at different times
        parameter.data.mul_(3.0) if parameter.dim() > 1 else None
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer():
    words = {f"w{i}": i for i in range(VOCABULARY)}
    words = {("</s>" if i == EOS else word): i for word, i in words.items()}
    inner = Tokenizer(models.WordLevel(words, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="w3")


def reference(model, prompt, **options):
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=options.pop("stop", EOS),
                            pad_token_id=2, **options)  # fmt: skip
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize(("name", "attention"), [(n, "sdpa") for n in CONFIGS] + [("llama", "eager")])
def test_greedy_is_generate_token_for_token(name, attention, batch_size, tokenizer):
    model = build(name, attention=attention)
    stop = reference(model, PROMPTS[1], max_new_tokens=12, do_sample=False)[4]  # so that a row ends early
    engine = TransformersEngine(model, tokenizer, stop_ids={stop}, batch_size=batch_size)
    sampling = Sampling(temperature=0.0, max_new_tokens=12)
    found = engine.generate(PROMPTS, sampling=sampling, seeds=range(len(PROMPTS) * 2), per_prompt=2)
    lengths = set()
    for prompt, completions in zip(PROMPTS, found, strict=True):
        expected = reference(model, prompt, max_new_tokens=12, do_sample=False, stop=stop)
        for completion in completions:
            assert list(completion.tokens) == expected
            assert completion.finished == (expected[-1] == stop)
            lengths.add(len(expected))
    assert len(lengths) > 1, "no row ended early, so dropping rows was not tried"


def test_greedy_with_repetition_penalty_is_generate(tokenizer):
    model = build()
    engine = TransformersEngine(model, tokenizer, stop_ids={EOS})
    sampling = Sampling(temperature=0.0, max_new_tokens=12, repetition_penalty=1.7)
    found = engine.generate(PROMPTS, sampling=sampling, seeds=range(len(PROMPTS)))
    for prompt, (completion,) in zip(PROMPTS, found, strict=True):
        expected = reference(model, prompt, max_new_tokens=12, do_sample=False, repetition_penalty=1.7)
        assert list(completion.tokens) == expected


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_beams_are_generates_best_first(batch_size, penalty, tokenizer):
    model = build()
    stop = reference(model, PROMPTS[1], max_new_tokens=8, do_sample=False)[4]
    engine = TransformersEngine(model, tokenizer, stop_ids={stop}, batch_size=batch_size)
    sampling = Sampling(temperature=0.0, max_new_tokens=8, beams=3, repetition_penalty=penalty)
    seen = []
    found = engine.generate(PROMPTS, sampling=sampling, seeds=range(len(PROMPTS) * 2), per_prompt=2,
                            on_progress=lambda *progress: seen.append(progress))  # fmt: skip
    assert seen[-1] == (12, 12)
    for prompt, completions in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=stop, pad_token_id=2,
                                  max_new_tokens=8, do_sample=False, num_beams=3, num_return_sequences=2,
                                  repetition_penalty=penalty)[:, len(prompt) :].tolist()  # fmt: skip
        for completion, tokens in zip(completions, expected, strict=True):
            assert completion.finished == (stop in tokens)
            end = tokens.index(stop) + 1 if completion.finished else None
            assert list(completion.tokens) == tokens[:end]
            assert completion.text == tokenizer.decode(tokens[:end], skip_special_tokens=True)
            assert completion.logprobs is None


def test_beams_with_what_they_cannot_do_are_refused():
    for wrong in ({"temperature": 1.0}, {"temperature": 0.0, "stop": ("x",)}):
        with pytest.raises(ValidationError, match="beam search"):
            Sampling(beams=2, **wrong)


def test_the_best_of_n_is_the_best_of_what_its_seeds_draw(tokenizer):
    engine = TransformersEngine(build(), tokenizer, stop_ids={EOS})
    sampling, seeds = Sampling(temperature=1.5, max_new_tokens=6), [7, 8, 9, 10]
    asked = []

    def score(prompts, completions):
        asked.extend(zip(map(tuple, prompts), completions, strict=True))
        return [float(sum(completion.tokens)) for completion in completions]

    options = {"score": score, "sampling": sampling, "seeds": seeds, "per_prompt": 2}
    kept = best_of(engine, PROMPTS[:2], candidates=5, **options)
    assert [len(group) for group in kept] == [2, 2]
    assert len(asked) == 2 * 2 * 5
    for place, completion in enumerate(c for group in kept for c in group):
        candidates = asked[place * 5 : place * 5 + 5]
        assert {prompt for prompt, _ in candidates} == {tuple(PROMPTS[place // 2])}
        assert len({c.tokens for _, c in candidates}) > 1
        assert sum(completion.tokens) == max(sum(c.tokens) for _, c in candidates)
        plain = engine.generate([PROMPTS[place // 2]], sampling=sampling, seeds=[seeds[place]])[0][0]
        assert candidates[0][1].tokens == plain.tokens
    once = best_of(engine, PROMPTS[:2], candidates=1, **options)
    plain = engine.generate(PROMPTS[:2], sampling=sampling, seeds=seeds, per_prompt=2)
    assert [[c.tokens for c in group] for group in once] == [[c.tokens for c in group] for group in plain]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_draw_depends_on_its_own_seed_only(name, tokenizer):
    model = build(name)
    sampling = Sampling(temperature=0.8, max_new_tokens=10)
    alone = TransformersEngine(model, tokenizer, stop_ids={EOS}, batch_size=1)
    together = TransformersEngine(model, tokenizer, stop_ids={EOS}, batch_size=64)
    seeds = [100 + i for i in range(len(PROMPTS) * 3)]
    first = alone.generate(PROMPTS, sampling=sampling, seeds=seeds, per_prompt=3)
    second = together.generate(PROMPTS, sampling=sampling, seeds=seeds, per_prompt=3)
    assert [[c.tokens for c in group] for group in first] == [[c.tokens for c in group] for group in second]
    backwards = together.generate(PROMPTS[::-1], sampling=sampling, seeds=seeds[::-1], per_prompt=3)
    assert [c.tokens for group in backwards for c in group] == [c.tokens for group in first for c in group][::-1]
    assert len({c.tokens for group in first for c in group}) > len(PROMPTS)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_logprobs_are_the_models_own_at_the_sampling_temperature(temperature, tokenizer):
    model = build()
    engine = TransformersEngine(model, tokenizer, stop_ids={EOS})
    sampling = Sampling(temperature=temperature, top_k=5, max_new_tokens=8)
    found = engine.generate(PROMPTS, sampling=sampling, seeds=range(len(PROMPTS)))
    for prompt, (completion,) in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([list(prompt) + list(completion.tokens)])
        with torch.no_grad():
            logprobs = (model(ids).logits[0].float() / temperature).log_softmax(-1)
        for place, token in enumerate(completion.tokens):
            expected = logprobs[len(prompt) + place - 1, token]
            assert completion.logprobs[place] == pytest.approx(expected.item(), abs=1e-4)


def test_a_stop_string_ends_the_completion(tokenizer):
    model = build()
    engine = TransformersEngine(model, tokenizer, stop_ids={EOS})
    whole = engine.generate([PROMPTS[1]], sampling=Sampling(temperature=0.0, max_new_tokens=12), seeds=[0])[0][0]
    words = whole.text.split()
    stop = f"{words[3]} {words[4]}"
    sampling = Sampling(temperature=0.0, max_new_tokens=12, stop=(stop,))
    cut = engine.generate([PROMPTS[1]], sampling=sampling, seeds=[0])[0][0]
    end = whole.text.index(stop)
    assert cut.finished
    assert cut.text == whole.text[:end]
    assert whole.tokens[: len(cut.tokens)] == cut.tokens
    assert tokenizer.decode(list(cut.tokens)).endswith(stop)


def test_an_adapter_is_sampled_with(tokenizer):
    model = get_peft_model(build(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.eval()
    engine = TransformersEngine(model, tokenizer, stop_ids={EOS})
    sampling = Sampling(temperature=0.0, max_new_tokens=8)
    found = [c.tokens for (c,) in engine.generate(PROMPTS, sampling=sampling, seeds=range(6))]
    with model.disable_adapter():
        plain = [c.tokens for (c,) in engine.generate(PROMPTS, sampling=sampling, seeds=range(6))]
    assert found != plain
    assert list(found[4]) == reference(model, PROMPTS[4], max_new_tokens=8, do_sample=False)


def test_training_mode_and_progress(tokenizer):
    model = build().train()
    seen = []
    engine = TransformersEngine(model, tokenizer, stop_ids={EOS}, batch_size=4)
    engine.generate(PROMPTS, sampling=Sampling(max_new_tokens=4), seeds=range(6),
                    on_progress=lambda done, total: seen.append((done, total)))  # fmt: skip
    assert model.training
    assert seen[-1] == (6, 6)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_wrong_calls_are_refused(tokenizer):
    engine = TransformersEngine(build(), tokenizer, stop_ids={EOS})
    with pytest.raises(ValueError, match="as many seeds"):
        engine.generate([[5]], sampling=Sampling(), seeds=[1, 2])
    with pytest.raises(ValueError, match="no tokens"):
        engine.generate([[]], sampling=Sampling(), seeds=[1])


def test_processors_are_those_of_generate_in_its_order():
    model = build()
    sampling = Sampling(temperature=0.6, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.3)
    config = model.generation_config
    config.update(do_sample=True, temperature=0.6, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.3)
    theirs = model._get_logits_processor(config, input_ids_seq_length=3, logits_processor=LogitsProcessorList())
    torch.manual_seed(3)
    ids, scores = torch.randint(0, VOCABULARY, (5, 7)), torch.randn(5, VOCABULARY) * 3
    torch.testing.assert_close(processors(sampling)(ids, scores), theirs(ids, scores))
    assert [type(p).__mro__[0 if not isinstance(p, TopP) else 1] for p in processors(sampling)] == [
        type(p) for p in theirs
    ]


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])  # the first: a flat distribution, wider than the candidates
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.95])
def test_quick_top_p_is_the_sorted_one(top_p, scale):
    scores = torch.randn(16, 4096, generator=torch.Generator().manual_seed(5)) * scale
    ids = torch.zeros(16, 1, dtype=torch.long)
    assert torch.equal(TopP(top_p)(ids, scores), TopPLogitsWarper(top_p)(ids, scores))


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 700), st.integers(0, 10_000))
def test_inverse_cdf_is_the_plain_one(vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(4, vocabulary, generator=generator) * 3
    scores[:, torch.rand(vocabulary, generator=generator) < 0.5] = -torch.inf
    scores[:, 0] = 0.5
    uniform = torch.rand(4, generator=generator, dtype=torch.float64)
    probs = scores.double().softmax(-1)
    for row, token in enumerate(inverse_cdf(scores, uniform).tolist()):
        below, total = probs[row, :token].sum().item(), probs[row, : token + 1].sum().item()
        assert below - 1e-6 <= uniform[row].item() <= total + 1e-6
        assert probs[row, token] > 0


def test_inverse_cdf_at_its_ends():
    scores = torch.full((2, 600), -torch.inf)
    scores[:, 3], scores[:, 500] = 0.0, 0.0
    ends = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(scores, ends).tolist() == [3, 500]


def test_uniforms_are_streams_of_their_seeds():
    rows = uniforms([4, 5, 4], 7)
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])
    assert ((rows >= 0) & (rows < 1)).all()


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    uniform = uniforms(range(20_000), 1)[:, 0]
    counts = inverse_cdf(logits.expand(20_000, 4), uniform).bincount(minlength=4) / 20_000
    assert (counts - logits.softmax(-1)).abs().max() < 0.015  # four standard errors


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [{"temperature": 1.0}, {"temperature": 0.0}, {"temperature": 0.0, "beams": 2}])
def test_logits_that_are_not_finite_stop_the_sampling(tiny_model, value, sampling):
    """NaN weights sampled empty answers silently: argmax takes the first NaN, and the sums of a draw are all NaN."""
    import torch
    from transformers import AutoModelForCausalLM

    from alignment.chat import load_tokenizer
    from alignment.errors import NotFiniteError
    from alignment.rollouts.stream import stream

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), load_tokenizer(tiny_model)
    engine = TransformersEngine(model.eval(), tokenizer, stop_ids={tokenizer.eos_token_id})
    drawn = Sampling(max_new_tokens=3, **sampling)
    assert engine.generate([[5, 6]], sampling=drawn, seeds=[0])
    with torch.no_grad():
        model.model.norm.weight[0] = value
    with pytest.raises(NotFiniteError, match="logits are not finite"):
        engine.generate([[5, 6]], sampling=drawn, seeds=[0])
    if "beams" not in sampling:
        with pytest.raises(NotFiniteError):
            list(stream(engine, [5, 6], sampling=drawn, seed=0))
