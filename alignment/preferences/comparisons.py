"""Which answers are put before raters, and how they are paired."""

from collections.abc import Sequence

from alignment.digests import content_id
from alignment.records import Comparison, Prompt, Response


def make_comparisons(
    prompts: Sequence[Prompt], responses: Sequence[Response], per_prompt: int, seed: int
) -> list[Comparison]:
    """Pairs of different answers to the same prompt, at most ``per_prompt`` of them, in the order of the prompts.

    Answers of the same text (outer spaces aside) are one answer: there is nothing to compare between them; where one of
    them ended by itself and another was cut off there, it is the one that ended. The pairs
    are dealt in the rounds of a round-robin tournament, so that no answer is used much more often than another (once
    at most where the number of answers is even, twice where it is odd). Which answer meets which, and which stands on
    the left, follow from ``seed`` and the ids alone, not from the order of ``responses``. Raises ValueError for a
    response to an unknown prompt.
    """
    return [
        comparison
        for prompt, answers in _different_answers(prompts, responses)
        for comparison in _compare(prompt, answers, per_prompt, seed)
    ]


def make_single_answers(
    prompts: Sequence[Prompt], responses: Sequence[Response], per_prompt: int, seed: int
) -> list[Comparison]:
    """Answers that are put before raters one at a time, at most ``per_prompt`` to each prompt, in the prompts' order.

    Which of them follows from ``seed`` and the ids alone; answers of the same text are one answer, as for
    :func:`make_comparisons`. Raises ValueError for a response to an unknown prompt.
    """
    return [
        Comparison(id=content_id(["answer", prompt.id, response.id]), prompt=prompt, responses=(response,))
        for prompt, answers in _different_answers(prompts, responses)
        for response in sorted(answers, key=lambda response: content_id([seed, response.id]))[:per_prompt]
    ]


def _different_answers(prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[tuple[Prompt, list[Response]]]:
    by_prompt: dict[str, dict[str, Response]] = {prompt.id: {} for prompt in prompts}
    for response in sorted(responses, key=lambda response: (not response.finished, response.id)):
        if response.prompt_id not in by_prompt:
            raise ValueError(f"response {response.id} answers the unknown prompt {response.prompt_id}")
        by_prompt[response.prompt_id].setdefault(response.text.strip(), response)
    return [(prompt, list(by_prompt[prompt.id].values())) for prompt in prompts]


def _compare(prompt: Prompt, answers: Sequence[Response], per_prompt: int, seed: int) -> list[Comparison]:
    shuffled = sorted(answers, key=lambda response: content_id([seed, response.id]))
    pairs = _round_robin(len(shuffled))[:per_prompt]
    return [_comparison(prompt, shuffled[i], shuffled[j], seed) for i, j in pairs]


def _comparison(prompt: Prompt, one: Response, other: Response, seed: int) -> Comparison:
    """Puts one of the two on the left, by a hash: raters who favour a side must not favour a response."""
    ids = sorted((one.id, other.id))
    flip = int(content_id([seed, "side", *ids]), 16) % 2
    left, right = sorted((one, other), key=lambda response: response.id, reverse=bool(flip))
    return Comparison(
        id=content_id(["comparison", prompt.id, left.id, right.id]), prompt=prompt, responses=(left, right)
    )


def _round_robin(players: int) -> list[tuple[int, int]]:
    """Every pair of players once, in rounds in which nobody plays twice (the circle method)."""
    seats: list[int | None] = [*range(players)]
    if players % 2:
        seats.append(None)  # whoever meets nobody rests
    pairs: list[tuple[int, int]] = []
    for _round in range(len(seats) - 1):
        for one, other in zip(seats[: len(seats) // 2], reversed(seats[len(seats) // 2 :]), strict=True):
            if one is not None and other is not None:
                pairs.append((one, other))
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return pairs
