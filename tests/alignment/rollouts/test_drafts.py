"""Proposed tokens, against decoding without them: the same tokens greedily and for a seed, the same distribution."""

import pytest
import torch
from scipy.stats import chisquare
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedTokenizerFast

from alignment.errors import StageError
from alignment.records import Sampling
from alignment.rollouts.drafts import DraftModel, PromptLookup
from alignment.rollouts.prefix_cache import PrefixCache
from alignment.rollouts.stream import complete, stream
from alignment.rollouts.transformers_engine import TransformersEngine

EOS = 1
TINY = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "bos_token_id": 0, "eos_token_id": EOS, "pad_token_id": 2}  # fmt: skip
TALKS = [[7, 8, 9, 10, 11, 12], [5, 6, 5, 6, 5, 6, 5], [*range(20, 40), *range(20, 30)], [3]]


def engine_of(seed=0, *, kind=LlamaConfig, noise=0.0, sharp=3.0, **changes):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(kind(**TINY | changes))
    for parameter in model.parameters():
        parameter.data.mul_(sharp) if parameter.dim() > 1 else None
        parameter.data += noise * torch.randn_like(parameter)
    size = model.config.vocab_size
    words = {"</s>" if i == EOS else f"w{i}": i for i in range(size)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="w3")
    return TransformersEngine(model.eval(), tokenizer, stop_ids={EOS})


def drafters(sampling):
    """Prompt look-up; the model itself, one that is nearly it, and one that is none of it."""
    models_ = (engine_of(), engine_of(noise=0.05), engine_of(1, vocab_size=70))
    return [PromptLookup(4), *(DraftModel(engine, sampling, vocabulary=64) for engine in models_)]


def reference(engine, prompt, **options):
    ids = torch.tensor([prompt])
    output = engine.model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=2, do_sample=False,
                                   max_new_tokens=24, **options)  # fmt: skip
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_is_plain_decoding_token_for_token(penalty):
    engine = engine_of()
    sampling = Sampling(temperature=0.0, max_new_tokens=24, repetition_penalty=penalty)
    for drafter in drafters(sampling):
        cache = PrefixCache(engine)
        for talk in TALKS:
            found = complete(cache, talk, sampling=sampling, seed=0, drafter=drafter)
            assert list(found.tokens) == reference(engine, talk, repetition_penalty=penalty)
            assert found.finished == (found.tokens[-1] == EOS)


def test_greedy_is_transformers_own_assisted_generation():
    engine, draft = engine_of(), engine_of(noise=0.05)
    sampling = Sampling(temperature=0.0, max_new_tokens=24)
    for talk in TALKS[:3]:
        looked_up = complete(PrefixCache(engine), talk, sampling=sampling, seed=0, drafter=PromptLookup(4))
        assert list(looked_up.tokens) == reference(engine, talk, prompt_lookup_num_tokens=4)
        drafter = DraftModel(draft, sampling, vocabulary=64)
        drafted = complete(PrefixCache(engine), talk, sampling=sampling, seed=0, drafter=drafter)
        assert list(drafted.tokens) == reference(engine, talk, assistant_model=draft.model)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_model_as_its_own_draft_is_always_right_and_saves_passes(temperature):
    engine = engine_of()
    sampling = Sampling(temperature=temperature, max_new_tokens=24)
    drafter = DraftModel(engine_of(), sampling, vocabulary=64)
    passes = []
    engine.model.register_forward_hook(lambda *_args: passes.append(1))
    found = complete(PrefixCache(engine), TALKS[0], sampling=sampling, seed=3, drafter=drafter)
    assert drafter.accepted == drafter.proposed > 0
    # 5 proposed and 1 more, then 7 and 1, then what is left of 24: 9 and 1.
    assert len(found.tokens) == 24
    assert len(passes) == 3


def test_a_look_up_finds_what_followed_the_same_two_tokens():
    lookup = PromptLookup(3)
    rest = torch.zeros(10)
    assert lookup.propose([5, 6, 7, 8, 9, 5, 6], rest) == [7, 8, 9]
    assert lookup.propose([5, 6, 7, 8, 9, 5, 6], rest[:1]) == [7]
    assert lookup.propose([4, 9, 3, 9], rest) == [3, 9]  # by the last token alone
    assert lookup.propose([4, 5, 6], rest) == []
    assert lookup.propose([4], rest) == []


def test_a_seed_draws_the_same_answer_with_and_without():
    engine = engine_of(sharp=2.0)
    sampling = Sampling(temperature=0.8, top_k=20, max_new_tokens=20)
    for drafter in drafters(sampling):
        cache = PrefixCache(engine)
        for seed, talk in enumerate(TALKS * 2):
            [[plain]] = engine.generate([talk], sampling=sampling, seeds=[seed])
            found = complete(cache, talk, sampling=sampling, seed=seed, drafter=drafter)
            assert (found.tokens, found.text, found.finished) == (plain.tokens, plain.text, plain.finished)
        assert drafter.proposed >= drafter.accepted


@pytest.mark.parametrize("kind", ["look-up", "draft"])
def test_what_is_drawn_has_the_models_distribution(kind):
    """The second token's probabilities by the law of total probability, from the model's own forward passes."""
    engine = engine_of(vocab_size=8, num_hidden_layers=1, pad_token_id=None, sharp=6.0)
    sampling = Sampling(temperature=0.9, max_new_tokens=3)
    prompt = [4, 5, 6, 4, 5, 7, 5, 4]
    with torch.no_grad():
        heads = [engine.model(torch.tensor([prompt])).logits[0, -1], *(
            engine.model(torch.tensor([[*prompt, token]])).logits[0, -1] for token in range(8)
        )]  # fmt: skip
    first, *second = (torch.softmax(logits.double() / 0.9, -1) for logits in heads)
    joint = first[:, None] * torch.stack(second)
    joint[EOS] = 0  # an answer that ended has no second token
    draft = engine_of(2, vocab_size=8, num_hidden_layers=1, pad_token_id=None, sharp=6.0)
    drafter = PromptLookup(2) if kind == "look-up" else DraftModel(draft, sampling, vocabulary=8)
    cache = PrefixCache(engine)
    counts, ended, draws = torch.zeros(8, dtype=torch.double), 0, 1500
    for seed in range(draws):
        tokens = complete(cache, prompt, sampling=sampling, seed=seed, drafter=drafter).tokens
        if len(tokens) > 1:
            counts[tokens[1]] += 1
        else:
            ended += 1
    expected = torch.cat([joint.sum(0), first[EOS : EOS + 1]])
    assert abs(float(expected.sum()) - 1) < 1e-9
    assert (expected * draws).min() > 1
    assert chisquare([*counts.tolist(), ended], (expected * draws).tolist()).pvalue > 0.001
    assert 0 < drafter.accepted < drafter.proposed  # both ways were gone


def test_a_draft_ends_at_its_last_position_and_needs_a_cache_to_take_back_from():
    engine = engine_of()
    sampling = Sampling(temperature=0.0, max_new_tokens=24)
    short = DraftModel(engine_of(max_position_embeddings=16), sampling, vocabulary=64)
    found = complete(PrefixCache(engine), TALKS[2], sampling=sampling, seed=0, drafter=short)
    assert list(found.tokens) == reference(engine, TALKS[2])
    assert short.proposed == 0
    with pytest.raises(StageError, match="sliding windows"):
        DraftModel(engine_of(kind=MistralConfig, sliding_window=8), sampling, vocabulary=64)
    with pytest.raises(ValueError, match="taken back from a cache"):
        next(stream(engine, [5], sampling=sampling, seed=0, drafter=short))
