from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from alignment.data.prompts import load_prompts
from alignment.data.split import is_held_out, limited, opening, split_both_sides, split_by_digest
from alignment.digests import pair_id, prompt_id
from alignment.records import Demonstration, Message, PreferencePair, Prompt

KEYS = st.lists(st.text(max_size=8), max_size=40)
SHARES = st.floats(min_value=0.01, max_value=0.99)


def turns(*contents: str) -> tuple[Message, ...]:
    roles = ("user", "assistant")
    return tuple(Message.model_validate({"role": roles[n % 2], "content": text}) for n, text in enumerate(contents))


@given(keys=KEYS, share=SHARES, order=st.randoms())
def test_a_key_lands_on_the_same_side_in_any_order_and_company(keys: list[str], share: float, order: object) -> None:
    train, held_out = split_by_digest(keys, share, key=lambda key: key)
    assert sorted(train + held_out) == sorted(keys)
    assert not set(train) & set(held_out)
    shuffled = sorted(keys, key=lambda _key: order.random())  # type: ignore[attr-defined]
    again, held_out_again = split_by_digest(shuffled[: len(keys) // 2], share, key=lambda key: key)
    assert set(again) <= set(train)
    assert set(held_out_again) <= set(held_out)


@given(keys=KEYS, share=SHARES)
def test_no_side_is_left_empty_by_chance(keys: list[str], share: float) -> None:
    plain = split_by_digest(keys, share, key=lambda key: key)
    train, held_out = split_both_sides(keys, share, key=lambda key: key)
    assert sorted(train + held_out) == sorted(keys)
    assert not set(train) & set(held_out)
    if all(plain):
        assert (train, held_out) == plain
    if len(set(keys)) > 1:
        assert train
        assert held_out
        moved = min(set(train), set(held_out), key=len)
        assert all(plain) or len(moved) == 1


def test_the_side_that_was_empty_gets_the_nearest() -> None:
    keys = [key for key in map(str, range(40)) if not is_held_out(key, 0.2)]
    shares = (share / 10_000 for share in range(2_000, 10_000))
    [first] = next(found for share in shares if (found := [key for key in keys if is_held_out(key, share)]))
    train, held_out = split_both_sides(keys, 0.2, key=str)
    assert held_out == [first]
    assert train == [key for key in keys if key != first]


@given(key=st.text(), shares=st.tuples(SHARES, SHARES))
def test_a_larger_share_only_adds(key: str, shares: tuple[float, float]) -> None:
    if is_held_out(key, min(shares)):
        assert is_held_out(key, max(shares))


def test_the_share_is_kept_in_expectation() -> None:
    held_out = sum(is_held_out(str(n), 0.2) for n in range(10_000))
    assert 1_880 <= held_out <= 2_120  # 2,000 ± 3 standard deviations of 40


def test_order_within_a_side_is_kept() -> None:
    train, held_out = split_by_digest(range(100), 0.5, key=str)
    assert train == sorted(train)
    assert held_out == sorted(held_out)


@given(first=st.text(min_size=1), more=st.lists(st.text(min_size=1), min_size=1, max_size=3))
def test_all_that_opens_alike_stays_together(first: str, more: list[str]) -> None:
    prompt = Prompt(id="p", messages=turns(first))
    longer = Prompt(id="q", messages=(Message(role="system", content="s"), *turns(first, *more)))
    shown = Demonstration(id="d", messages=turns(f" {first}\n", *more))
    pair = PreferencePair(id="r", prompt_id="p", prompt=turns(first.upper().lower()), chosen="a", rejected="b")
    assert len({opening(prompt), opening(longer), opening(shown)}) == 1
    assert opening(pair).split() == " ".join(first.upper().lower().split()).casefold().split()


def test_ids_are_of_the_content_and_the_order() -> None:
    assert prompt_id(turns("a")) != prompt_id(turns("b"))
    assert pair_id(turns("a"), "x", "y") != pair_id(turns("a"), "y", "x")


@given(texts=st.lists(st.text(min_size=1, max_size=8), max_size=30, unique=True), limit=st.integers(1, 40))
def test_a_limit_takes_no_notice_of_the_order_in_the_file(texts: list[str], limit: int) -> None:
    prompts = [Prompt(id=prompt_id(turns(text)), messages=turns(text)) for text in texts]
    chosen = limited(prompts, limit)
    assert len(chosen) == min(limit, len(texts))
    assert chosen == [prompt for prompt in prompts if prompt in chosen]
    assert {prompt.id for prompt in limited(prompts[::-1], limit)} == {prompt.id for prompt in chosen}
    assert limited(prompts, None) == prompts


def test_a_limit_of_a_sorted_file_reaches_every_kind() -> None:
    """The quickstart's: 44 of 216 training prompts, sorted by eight kinds; its first 44 rows hold two kinds."""
    path = Path(__file__).parents[3] / "flows" / "recipes" / "quickstart" / "prompts.jsonl"
    train, _held_out = load_prompts(path, 0.2)
    assert len({prompt.kind for prompt in limited(train, 44)}) == 8
