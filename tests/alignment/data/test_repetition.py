"""Near-duplicates and contamination, against sets worked out by hand and against every pair compared in full."""

import random
from itertools import combinations

import pytest

from alignment.data.repetition import contaminated, jaccard, near_duplicates, shingles


def test_the_jaccard_index_by_hand() -> None:
    one, other = shingles("The cat sat on the mat."), shingles("the cat sat on the MAT today")
    assert one == {"the cat sat", "cat sat on", "sat on the", "on the mat"}
    assert jaccard(one, other) == 4 / 5
    assert shingles("Hello there!") == {"hello there"}
    assert shingles("?!") == {"?!"}


def test_the_first_of_near_duplicates_stays() -> None:
    texts = [
        "Name the capital city of Norway please.",
        "Why is the sky blue at noon?",
        "name the capital city of Norway, please",
        "Name the capital city of Norway please now.",
        "Hi",
        "hi!",
    ]
    found = {repeat.index: (repeat.of, round(repeat.share, 3)) for repeat in near_duplicates(texts, 0.8)}
    assert found == {2: (0, 1.0), 3: (0, 0.833), 5: (4, 1.0)}
    for threshold in (0.9, 1.0):
        assert [repeat.index for repeat in near_duplicates(texts, threshold)] == [2, 5]
    with pytest.raises(ValueError, match="Jaccard"):
        near_duplicates(texts, 0)


def test_minhash_finds_what_every_pair_compared_finds() -> None:
    rng = random.Random(5)
    vocabulary = [f"w{n}" for n in range(60)]
    texts = []
    for _ in range(120):
        if texts and rng.random() < 0.4:
            tokens = rng.choice(texts).split()
            for _ in range(rng.randint(0, 3)):
                tokens[rng.randrange(len(tokens))] = rng.choice(vocabulary)
            texts.append(" ".join(tokens))
        else:
            texts.append(" ".join(rng.choices(vocabulary, k=30)))
    sets = [shingles(text) for text in texts]
    removed: set[int] = set()
    for early, late in combinations(range(len(texts)), 2):
        assert early < late
    for late in range(len(texts)):
        if any(early not in removed and jaccard(sets[early], sets[late]) >= 0.7 for early in range(late)):
            removed.add(late)
    found = {repeat.index for repeat in near_duplicates(texts, 0.7)}
    assert found <= removed or found == removed
    assert len(found) >= 0.95 * len(removed) > 10


def test_contamination_is_words_in_a_row() -> None:
    held_out = ["Which planet is known as the Red Planet?", "Hello", "Who wrote Hamlet?"]
    texts = [
        "Tell me which planet is known as the red planet today",  # eight words of the first
        "Which planet is known as the blue planet?",  # six in a row only
        "hello there",  # one word is everywhere
        "HELLO!",
        "I asked: who wrote Hamlet, and when?",  # all of a shorter one
    ]
    found = {repeat.index: (repeat.of, repeat.what) for repeat in contaminated(texts, held_out, n=8)}
    assert found == {
        0: (0, "which planet is known as the red planet"), 3: (1, "hello"), 4: (2, "who wrote hamlet")
    }  # fmt: skip
    assert [repeat.index for repeat in contaminated(texts, held_out, n=6)] == [0, 1, 3, 4]
    assert contaminated(texts, [], n=8) == []
    with pytest.raises(ValueError, match="fewer than 3"):
        contaminated(texts, held_out, n=2)
