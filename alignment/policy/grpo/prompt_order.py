"""In which order the prompts of a run are asked: the seed's alone, whichever step it goes on from, by however many."""

from collections.abc import Sequence

import torch
from datasets import Dataset

from alignment.records import Prompt
from alignment.rollouts.seeds import derived_seed


def worker_places(per_step: int, minibatches: int, workers: int) -> list[int]:
    """In which order ``workers`` ask a step's prompts, a stretch each, so that its minibatches are those of one alone.

    Each worker splits its own stretch into ``minibatches``; together these are the whole's where prompts fall into them
    evenly. Where they do not, the prompts stay in their order, and minibatches are of other prompts than one's alone.
    """
    cell, rest = divmod(per_step, minibatches * workers)
    if rest:
        return list(range(per_step))
    return [
        (minibatch * workers + rank) * cell + place
        for rank in range(workers)
        for minibatch in range(minibatches)
        for place in range(cell)
    ]


def run_dataset(prompts: Sequence[Prompt], *, steps: int, places: Sequence[int], seed: int) -> Dataset:
    """The rows of a whole run: for each step as many prompts as ``places``, in that order; every pass over the prompts
    has its own order."""
    per_step = len(places)
    rows = [
        {"prompt": [message.model_dump() for message in prompt.messages], "index": index}
        for index, prompt in enumerate(prompts)
    ]
    order: list[int] = []
    while len(order) < steps * per_step:
        generator = torch.Generator().manual_seed(derived_seed(seed, "order", len(order) // len(prompts)))
        order += torch.randperm(len(prompts), generator=generator).tolist()
    return Dataset.from_list(rows).select([order[step * per_step + place] for step in range(steps) for place in places])
