"""Seeds that are derived from the recipe's: of single responses, and of every other draw."""

import hashlib


def derived_seed(*parts: object) -> int:
    """A seed that depends on ``parts`` alone, so that a restarted run draws what the first one would have."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big")


def response_seed(seed: int, prompt_id: str, index: int) -> int:
    """A response's own seed: it depends on nothing but the recipe's seed, the prompt and its place among the K."""
    return derived_seed(seed, prompt_id, index)
