import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from alignment.chat import render_prompt
from alignment.metrics import kl
from alignment.metrics.kl import mean_kl, response_kl, token_kl
from alignment.models.load import load_policy
from alignment.recipe.recipe import Recipe
from alignment.records import Artifact, Prompt, Sampling
from alignment.rollouts.policy_pool import PolicyPool
from alignment.rollouts.transformers_engine import TransformersEngine

PROMPT, RESPONSE = [3, 5, 6, 7, 4], [12, 7, 8, 9, 9, 6, 1]


@given(st.lists(st.lists(st.floats(-20, 20), min_size=5, max_size=5), min_size=2, max_size=6))
def test_token_kl_is_torchs(rows: list[list[float]]) -> None:
    logits = torch.tensor(rows, dtype=torch.float64)
    reference = logits.flip(0)
    expected = kl_divergence(Categorical(logits=logits), Categorical(logits=reference))
    torch.testing.assert_close(token_kl(logits, reference), expected, rtol=1e-9, atol=1e-9)
    assert (token_kl(logits, reference) >= 0).all()


def test_token_kl_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[0.25, 0.25, 0.5]]).log()
    assert token_kl(p, q).tolist() == pytest.approx([math.log(2)])
    assert token_kl(p, p).tolist() == [0.0]
    assert token_kl(q, p).tolist() == [math.inf]  # the policy does what the reference never would


@pytest.mark.parametrize("chunk", [1, 3, 128])
@pytest.mark.parametrize(("policy", "reference"), [("short", "base"), ("short", "other"), ("base", "whole")])
def test_response_kl_is_the_whole_forward_passes(
    policy: str,
    reference: str,
    chunk: int,
    policies: dict[str, Artifact],
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kl, "CHUNK", chunk)
    pool = PolicyPool(policies["base"], recipe.run_settings())
    found = response_kl(lambda: pool.use(policies[policy]), lambda: pool.use(policies[reference]), PROMPT, RESPONSE)
    distributions = []
    with torch.inference_mode():
        for name in (policy, reference):
            model, _ = load_policy(policies[name], policies["base"], recipe.run_settings())
            logits = model(input_ids=torch.tensor([PROMPT + RESPONSE])).logits[0, len(PROMPT) - 1 : -1]
            distributions.append(Categorical(logits=logits.double()))
    assert found == pytest.approx(float(kl_divergence(*distributions).sum()), rel=1e-4)
    assert found > 0


@pytest.mark.parametrize(("policy", "reference"), [("short", "base"), ("base", "whole"), ("whole", "other")])
@pytest.mark.parametrize("batch_size", [2, 16])
def test_many_answers_at_once_are_those_one_by_one(
    policy: str,
    reference: str,
    batch_size: int,
    policies: dict[str, Artifact],
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prompts and responses of unequal lengths, padded together, in pieces of the head that end inside a response."""
    monkeypatch.setattr(kl, "CHUNK", 5)
    pool = PolicyPool(policies["base"], recipe.run_settings())
    use, other = (lambda: pool.use(policies[policy])), (lambda: pool.use(policies[reference]))
    answers = [(PROMPT[: 1 + size % len(PROMPT)], (RESPONSE * 3)[: 1 + (4 * size) % 11]) for size in range(7)]
    alone = [response_kl(use, other, prompt, response) for prompt, response in answers]
    together = kl.batched_kls(use, other, answers, batch_size=batch_size)
    assert together == pytest.approx(alone, rel=1e-5, abs=1e-5)
    assert len({round(value, 4) for value in alone}) == len(alone)  # an answer in another's place would show
    with pytest.raises(ValueError, match="at least one token"):
        kl.batched_kls(use, other, [(PROMPT, [])], batch_size=4)


def test_a_policy_is_at_no_distance_from_itself(policies: dict[str, Artifact], recipe: Recipe) -> None:
    pool = PolicyPool(policies["base"], recipe.run_settings())
    use = lambda: pool.use(policies["short"])  # noqa: E731
    assert response_kl(use, use, PROMPT, RESPONSE) == 0.0
    assert response_kl(use, use, PROMPT, RESPONSE[:1]) == 0.0


def test_it_estimates_the_same_as_the_sampled_log_ratio(
    policies: dict[str, Artifact], recipe: Recipe, prompts: list[Prompt]
) -> None:
    """E[Σ KL] = E[log p(y) - log q(y)] over responses y of the policy, and with less variance."""
    pool = PolicyPool(policies["base"], recipe.run_settings())
    base, _ = load_policy(policies["base"], policies["base"], recipe.run_settings())
    loaded = pool.use(policies["other"])
    asked = render_prompt(loaded.tokenizer, prompts[0].messages)
    engine = TransformersEngine(loaded.model, loaded.tokenizer, stop_ids=loaded.stop_ids, batch_size=120)
    sampling = Sampling(temperature=1.0, max_new_tokens=4)
    (drawn,) = engine.generate([asked], sampling=sampling, seeds=range(120), per_prompt=120)
    exact, ratios = [], []
    for completion in drawn:
        exact.append(
            response_kl(
                lambda: pool.use(policies["other"]), lambda: pool.use(policies["base"]), asked, completion.tokens
            )
        )
        with torch.inference_mode():
            ids = torch.tensor([[*asked, *completion.tokens]])
            logprobs = base(input_ids=ids).logits[0, len(asked) - 1 : -1].log_softmax(-1)
        chosen = logprobs.gather(-1, torch.tensor(completion.tokens)[:, None]).sum()
        assert completion.logprobs is not None
        ratios.append(float(completion.logprobs.sum() - chosen))
    exact_t, ratio_t = torch.tensor(exact), torch.tensor(ratios)
    standard_error = float((exact_t - ratio_t).std()) / math.sqrt(len(drawn))
    assert abs(float(exact_t.mean() - ratio_t.mean())) < 4 * standard_error
    assert exact_t.std() < ratio_t.std()


def test_estimate_with_its_interval() -> None:
    estimate = mean_kl([1.0, 2.0, 3.0, 4.0, 10.0], max_new_tokens=8)
    assert (estimate.value, estimate.n) == (4.0, 5)
    assert estimate.low is not None
    assert estimate.high is not None
    # By hand: the standard error is √(12.5 / 5) = 1.5811, on the log scale 0.3953; Student's t of 4 is 2.7764.
    assert (estimate.low, estimate.high) == pytest.approx((4 / 2.9966, 4 * 2.9966), rel=1e-3)
    single = mean_kl([2.0], max_new_tokens=8)
    assert (single.value, single.low, single.high) == (2.0, None, None)
    with pytest.raises(ValueError, match="at least one response"):
        mean_kl([], max_new_tokens=8)


def test_nothing_to_compare_is_refused(policies: dict[str, Artifact], recipe: Recipe) -> None:
    pool = PolicyPool(policies["base"], recipe.run_settings())
    with pytest.raises(ValueError, match="at least one token"):
        response_kl(lambda: pool.use(policies["base"]), lambda: pool.use(policies["base"]), PROMPT, [])
