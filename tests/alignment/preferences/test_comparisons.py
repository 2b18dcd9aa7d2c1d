from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.preferences.comparisons import make_comparisons
from alignment.records import Message, Prompt, Response, Sampling

Make = Callable[..., Any]
PROMPT = Prompt(id="p", messages=(Message(role="user", content="Hi"),))


def answers(*texts: str) -> list[Response]:
    return [
        Response(id=f"r{i}", prompt_id="p", text=text, model="m", sampling=Sampling(), seed=i, tokens=1, finished=True)
        for i, text in enumerate(texts)
    ]


@given(
    texts=st.lists(st.sampled_from(["a", "b", "c", "d ", "d", "e", "f"]), max_size=12),
    per_prompt=st.integers(1, 10),
    seed=st.integers(0, 5),
    order=st.randoms(),
)
def test_pairs_are_distinct_balanced_and_independent_of_order(
    texts: list[str], per_prompt: int, seed: int, order: Any
) -> None:
    responses = answers(*texts)
    made = make_comparisons([PROMPT], responses, per_prompt, seed)
    distinct = len({text.strip() for text in texts})
    assert len(made) == min(per_prompt, distinct * (distinct - 1) // 2)
    pairs = [frozenset(r.text.strip() for r in comparison.responses) for comparison in made]
    assert all(len(pair) == 2 for pair in pairs)
    assert len(set(pairs)) == len(pairs) == len({comparison.id for comparison in made})
    uses = Counter({text.strip(): 0 for text in texts})
    uses.update(text for pair in pairs for text in pair)
    if distinct >= 2:
        assert max(uses.values()) - min(uses.values()) <= 1 + distinct % 2
    shuffled = list(responses)
    order.shuffle(shuffled)
    assert make_comparisons([PROMPT], shuffled, per_prompt, seed) == made


def test_seed_decides_pairs_and_sides() -> None:
    responses = answers("a", "b")
    sides = Counter(make_comparisons([PROMPT], responses, 1, seed)[0].responses[0].id for seed in range(200))
    assert 70 <= sides["r0"] <= 130  # 100 expected, standard deviation 7
    many = answers(*"abcdefgh")
    assert make_comparisons([PROMPT], many, 2, 0) != make_comparisons([PROMPT], many, 2, 1)


def test_identical_answers_are_never_compared() -> None:
    assert make_comparisons([PROMPT], answers("a", " a", "a\n"), 3, 0) == []


def test_an_answer_to_an_unknown_prompt_is_an_error() -> None:
    other = PROMPT.model_copy(update={"id": "q"})
    with pytest.raises(ValueError, match="unknown prompt p"):
        make_comparisons([other], answers("a", "b"), 1, 0)
