"""Texts that say the same: near-duplicates among each other, and repeats of what is held out.

Near-duplicates are found by MinHash (Broder 1997) and confirmed by the Jaccard index itself, so that a chance collision
removes nothing. Contamination is an n-gram of words that a held-out text has as well (Brown et al. 2020, appendix C).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from datasketch import MinHash, MinHashLSH

from alignment.data.text import words

SHINGLE = SHORTEST = 3  # words
PERMUTATIONS = 128
NEAREST = 0.95


@dataclass(frozen=True, slots=True)
class Repeat:
    """A text that says what another says: ``index`` repeats ``of``, by ``share`` (1: a whole n-gram, or the same text).

    ``what`` is the n-gram that both have; empty for near-duplicates.
    """

    index: int
    of: int
    share: float
    what: str = ""


def near_duplicates(texts: Sequence[str], threshold: float, *, seed: int = 1) -> list[Repeat]:
    """Each text whose word triples have a Jaccard index of at least ``threshold`` with an earlier one that is kept.

    Texts of fewer words than three are compared whole. Raises ValueError for a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"a Jaccard index lies in (0, 1], and the threshold is {threshold}")
    sets = [shingles(text) for text in texts]
    # It proposes, the index itself decides; misses cost more than a look. For the same text alone it has no bands.
    index = MinHashLSH(threshold=min(threshold, NEAREST), num_perm=PERMUTATIONS, weights=(0.1, 0.9))
    found: list[Repeat] = []
    for number, own in enumerate(sets):
        sketch = MinHash(num_perm=PERMUTATIONS, seed=seed)
        sketch.update_batch([shingle.encode() for shingle in sorted(own)])
        near = [(jaccard(own, sets[other]), -other) for other in index.query(sketch)]
        share, other = max(near, default=(0.0, 0))
        if share >= threshold:
            found.append(Repeat(number, -other, share))
        else:
            index.insert(number, sketch)
    return found


def contaminated(texts: Sequence[str], held_out: Sequence[str], *, n: int) -> list[Repeat]:
    """Each text that has ``n`` words in a row of a held-out text, or all words of a shorter one; the first found.

    A held-out text of fewer than three words is repeated by the same text alone: its words are everywhere. Case and
    punctuation do not count. Raises ValueError for n below 3.
    """
    if n < SHORTEST:
        raise ValueError(f"fewer than {SHORTEST} words in a row say nothing, and n is {n}")
    known: dict[tuple[str, ...], int] = {}
    for number, text in enumerate(held_out):
        tokens = words(text)
        for gram in _grams(tokens, min(n, len(tokens))):
            known.setdefault(gram, number)
    sizes = sorted({len(gram) for gram in known if len(gram) >= SHORTEST})
    found = []
    for number, text in enumerate(texts):
        tokens = words(text)
        grams = [tuple(tokens), *(gram for size in sizes for gram in _grams(tokens, size))]
        shared = next((gram for gram in grams if gram in known), None)
        if shared is not None:
            found.append(Repeat(number, known[shared], 1.0, " ".join(shared)))
    return found


def shingles(text: str) -> frozenset[str]:
    """A text's word triples; of a shorter text, its words together."""
    tokens = words(text)
    return frozenset(" ".join(gram) for gram in _grams(tokens, min(SHINGLE, len(tokens)))) or frozenset([text.strip()])


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """The share of what either has that both have, in [0, 1]."""
    return len(one & other) / len(one | other) if one or other else 1.0


def _grams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[place : place + n]) for place in range(len(tokens) - n + 1)] if n else []
