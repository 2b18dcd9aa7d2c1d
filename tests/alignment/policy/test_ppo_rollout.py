"""Experience against a plain computation, one answer at a time."""

import math

import pytest
import torch

from alignment.distributed.workers import Team
from alignment.errors import StageError
from alignment.policy.online.actor_critic import ActorCritic, frozen_copy
from alignment.policy.online.answers import checked_scores, choose_prompts, sample
from alignment.policy.online.batch import by_length, collate, dealt
from alignment.policy.online.kl_controller import KlController
from alignment.policy.ppo.experience import beyond_others, make_experience, token_rewards
from alignment.rollouts.engine import Completion
from alignment.rollouts.transformers_engine import TransformersEngine


def episodes_of(tiny, policy, settings, step=0):
    engine = TransformersEngine(policy, tiny.tokenizer(), stop_ids={tiny.eos})
    chosen = choose_prompts(tiny.prompts(), 0, settings.episodes // settings.per_prompt, seed=0)
    return sample(engine, chosen, settings, seed=0, step=step)


def test_every_pass_over_the_prompts_holds_each_once_in_its_own_order(tiny):
    prompts = tiny.prompts(8)
    stream = choose_prompts(prompts, 0, 24, seed=3)
    passes = [[prompt.id for prompt, _ in stream[start : start + 8]] for start in (0, 8, 16)]
    assert all(sorted(ids) == sorted(p.id for p, _ in prompts) for ids in passes)
    assert len({tuple(ids) for ids in passes}) == 3
    assert choose_prompts(prompts, 5, 7, seed=3) == stream[5:12]
    assert choose_prompts(prompts, 0, 24, seed=4) != stream


def test_token_rewards_by_hand():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    kl = torch.tensor([[0.1, -0.2, 0.3], [0.5, math.nan, math.nan]])
    rewards = token_rewards(torch.tensor([2.0, -1.0]), kl, mask, 0.5)
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 0.1, 1.85], [-1.25, 0.0, 0.0]]))


def test_scores_beyond_those_of_the_other_answers_by_hand():
    """Prompt a: 1 against (2 + 6) / 2, 2 against (1 + 6) / 2, 6 against (1 + 2) / 2; b has one answer, c two."""
    scores = torch.tensor([1.0, 10.0, 2.0, 5.0, 6.0, 7.0])
    found = beyond_others(scores, ["a", "b", "a", "c", "a", "c"])
    torch.testing.assert_close(found, torch.tensor([-3.0, 10.0, -1.5, -2.0, 4.5, 2.0]))


def test_a_baseline_of_the_prompt_changes_the_last_reward_alone(tiny):
    """With no KL penalty, a zero critic and lam 1 every token's return is the score beyond the other answers'."""
    settings = tiny.settings(
        baseline="prompt", per_prompt=2, kl_coefficient=0.0, lam=1.0, missing_eos_penalty=0.0, whiten_advantages=False
    )
    policy = tiny.policy()
    episodes = episodes_of(tiny, policy, settings)
    scores = torch.arange(float(len(episodes))) ** 2
    actor = ActorCritic(policy, temperature=settings.sampling.temperature)
    found = make_experience(episodes, scores, actor, frozen_copy(policy), settings, kl_coefficient=0.0)
    assert torch.equal(found.scores, scores)
    expected = beyond_others(scores, [episode.prompt_ids for episode in episodes])
    torch.testing.assert_close(found.returns, torch.where(found.mask, expected[:, None], 0.0))


def test_collate_points_at_the_states_that_choose_each_token(tiny):
    episodes = episodes_of(tiny, tiny.policy(), tiny.settings())
    tokens = collate(episodes, torch.device("cpu"))
    for row, episode in enumerate(episodes):
        count = len(episode.completion.tokens)
        assert tokens.mask[row].sum() == count
        assert tokens.labels[row, :count].tolist() == list(episode.completion.tokens)
        whole = [*episode.prompt_ids, *episode.completion.tokens]
        for place, token in zip(tokens.places[row, :count].tolist(), episode.completion.tokens, strict=True):
            assert whole[place + 1] == token
            assert tokens.ids[row, place] == whole[place]
    flat = torch.arange(float(tokens.mask.sum()))
    assert torch.equal(tokens.scatter(flat)[tokens.mask], flat)


def test_by_length_splits_everything_longest_first(tiny):
    episodes = episodes_of(tiny, tiny.policy(), tiny.settings())
    pieces = list(by_length(range(8), episodes, 3))
    assert sorted(index for piece in pieces for index in piece) == list(range(8))
    lengths = [episodes[index].length for piece in pieces for index in piece]
    assert lengths == sorted(lengths, reverse=True)
    assert [len(piece) for piece in pieces] == [3, 3, 2]


@pytest.mark.parametrize(("count", "workers"), [(8, 2), (5, 2), (1, 3), (7, 3), (2, 1)])
def test_workers_whose_weights_are_in_parts_make_equally_many_passes(tiny, count, workers):
    episodes = episodes_of(tiny, tiny.policy(), tiny.settings())
    shared = [dealt(range(count), episodes, 2, Team(rank, workers), alike=True) for rank in range(workers)]
    assert len({len(own) + len(idle) for own, idle in shared}) == 1
    assert sorted(row for own, _idle in shared for piece in own for row in piece) == list(range(count))
    assert any(not idle for _own, idle in shared)  # no pass is made for nobody's sake
    for rank, (own, idle) in enumerate(shared):
        assert all(len(piece) == 1 for piece in idle)
        assert dealt(range(count), episodes, 2, Team(rank, workers), alike=False) == (own, [])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_experience_is_the_plain_computation(tiny, temperature):
    settings = tiny.settings(batch_size=1, whiten_advantages=False, missing_eos_penalty=0.5, lam=0.9, gamma=0.95)
    settings = settings.model_copy(
        update={"sampling": settings.sampling.model_copy(update={"temperature": temperature})}
    )
    policy, other = tiny.policy(0), tiny.policy(1)
    actor = ActorCritic(policy, temperature=temperature)
    torch.nn.init.normal_(actor.value_head.weight)
    episodes = episodes_of(tiny, policy, settings)
    scores = torch.arange(8.0)
    made = make_experience(episodes, scores, actor, frozen_copy(other), settings, kl_coefficient=0.3)
    assert len({episode.completion.finished for episode in episodes}) == 2
    for row, episode in enumerate(episodes):
        ids = torch.tensor([[*episode.prompt_ids, *episode.completion.tokens]])
        first, count = len(episode.prompt_ids), len(episode.completion.tokens)
        with torch.no_grad():
            logprobs, reference = (
                (model(ids).logits[0] / temperature)
                .log_softmax(-1)[first - 1 : -1]
                .gather(-1, ids[0, first:, None])
                .squeeze(-1)
                for model in (policy, other)
            )
            hidden = policy.model(ids).last_hidden_state[0, first - 1 : -1]
            values = (hidden @ actor.value_head.weight.T).squeeze(-1)
        score = scores[row].item() - (0.0 if episode.completion.finished else 0.5)
        rewards = (-0.3 * (logprobs - reference)).tolist()
        rewards[-1] += score
        advantages, trace, following = [0.0] * count, 0.0, 0.0
        for t in reversed(range(count)):
            trace = rewards[t] + 0.95 * following - values[t].item() + 0.95 * 0.9 * trace
            following, advantages[t] = values[t].item(), trace
        kept = slice(0, count)
        torch.testing.assert_close(made.logprobs[row, kept], logprobs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(made.ref_logprobs[row, kept], reference, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(made.sampling_logprobs[row, kept], logprobs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(made.values[row, kept], values, atol=1e-4, rtol=1e-4)
        assert made.advantages[row, kept].tolist() == pytest.approx(advantages, abs=1e-3)
        assert made.scores[row].item() == pytest.approx(score)
        assert not made.mask[row, count:].any()
        for tensor in (made.logprobs, made.values, made.advantages, made.returns):
            assert (tensor[row, count:] == 0).all()


def test_experience_does_not_depend_on_the_batch(tiny):
    policy = tiny.policy()
    actor = ActorCritic(policy, temperature=1.0)
    episodes = episodes_of(tiny, policy, tiny.settings())
    made = [
        make_experience(
            episodes, torch.ones(8), actor, frozen_copy(policy), tiny.settings(batch_size=size), kl_coefficient=0.1
        )
        for size in (1, 3, 8)
    ]
    for other in made[1:]:
        torch.testing.assert_close(made[0].logprobs, other.logprobs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(made[0].advantages, other.advantages, atol=1e-4, rtol=1e-4)


def test_importance_weights_need_the_engines_logprobs(tiny):
    policy = tiny.policy()
    actor = ActorCritic(policy, temperature=1.0)
    settings = tiny.settings(importance_cap=2.0)
    episodes = episodes_of(tiny, policy, settings)
    made = make_experience(episodes, torch.ones(8), actor, frozen_copy(policy), settings, kl_coefficient=0.1)
    torch.testing.assert_close(made.weights[made.mask], torch.ones(int(made.mask.sum())), atol=1e-4, rtol=1e-4)
    silent = [
        type(e)(e.prompt, e.prompt_ids, Completion(e.completion.tokens, e.completion.text, e.completion.finished))
        for e in episodes
    ]
    with pytest.raises(StageError, match="does not say how likely"):
        make_experience(silent, torch.ones(8), actor, frozen_copy(policy), settings, kl_coefficient=0.1)


def test_a_reward_that_fails_is_named_with_prompt_and_answer(tiny):
    episodes = episodes_of(tiny, tiny.policy(), tiny.settings())
    bad = episodes[3]
    shown = f"prompt {bad.prompt.messages[-1].content!r}, answer {bad.completion.text!r}"
    for value in (math.nan, math.inf):
        with pytest.raises(StageError) as raised:
            checked_scores(lambda e, value=value: [0.0, 0.0, 0.0, value] + [0.0] * 4, episodes)
        assert shown in str(raised.value)
    with pytest.raises(StageError, match="7 scores for 8 answers"):
        checked_scores(lambda e: [0.0] * 7, episodes)
    with pytest.raises(StageError, match=r"ZeroDivisionError.*answer"):
        checked_scores(lambda e: [1 / 0], episodes)
    assert checked_scores(lambda e: range(8), episodes).tolist() == list(range(8))


def test_the_adaptive_coefficient_by_hand():
    controller = KlController(0.1, target=6.0, horizon=100)
    controller.update(kl=12.0, episodes=10)  # error 1, clipped to 0.2: times 1 + 0.2 * 10 / 100
    assert controller.coefficient == pytest.approx(0.102)
    controller.update(kl=5.4, episodes=10)  # error -0.1: times 0.99
    assert controller.coefficient == pytest.approx(0.102 * 0.99)
    fixed = KlController(0.1)
    fixed.update(kl=100.0, episodes=10)
    assert fixed.coefficient == 0.1
