"""An answer word by word, as a person who waits for it wants to read it. Many answers at once are an engine's work."""

from collections.abc import Generator, Iterator, Sequence

import torch

from alignment.records import Sampling
from alignment.rollouts.drafts import Drafter, accepted_tokens
from alignment.rollouts.engine import Completion
from alignment.rollouts.prefix_cache import PrefixCache
from alignment.rollouts.sampling import processors, uniforms
from alignment.rollouts.transformers_engine import TransformersEngine, _Decoding, _Row

_HALF_A_CHARACTER = "�"  # what a tokenizer makes of bytes whose rest is still to come


def stream(
    engine: TransformersEngine,
    prompt: Sequence[int],
    *,
    sampling: Sampling,
    seed: int,
    cache: PrefixCache | None = None,
    drafter: Drafter | None = None,
) -> Generator[str, None, bool]:
    """Yields the text so far after every token: the last is what ``engine.generate`` gives for this seed.

    Returns whether the answer ended by itself; False: it was cut off at its longest length.

    ``cache`` holds what the engine's model read before; with it, ``drafter`` may propose tokens. The model must be in
    evaluation mode. Several streams may be read in turns, in one thread or in many, where each has its own cache.
    Raises ValueError for an empty prompt, for beam search, which has no first words before its last, or for a drafter
    without a cache.
    """
    if not prompt or sampling.beams > 1:
        raise ValueError("a stream needs a prompt, and draws or takes one token after another")
    if cache is None and drafter is not None:
        raise ValueError("what a drafter proposes is taken back from a cache, and none is given")
    row = _Row(tuple(prompt), seed, 0)
    for _token in _tokens(engine, row, sampling, cache, drafter):
        text = row.text if row.text is not None else str(engine.tokenizer.decode(row.tokens, skip_special_tokens=True))
        yield text if row.finished else text.rstrip(_HALF_A_CHARACTER)
    return row.finished


def complete(
    cache: PrefixCache, prompt: Sequence[int], *, sampling: Sampling, seed: int, drafter: Drafter | None = None
) -> Completion:
    """One whole answer, read on from what ``cache`` holds; its log-probabilities are not kept."""
    row = _Row(tuple(prompt), seed, 0)
    for _token in _tokens(cache.engine, row, sampling, cache, drafter):
        pass
    whole = cache.engine._completion(row)
    return Completion(whole.tokens, whole.text, whole.finished)


def _tokens(
    engine: TransformersEngine, row: _Row, sampling: Sampling, cache: PrefixCache | None, drafter: Drafter | None
) -> Iterator[int]:
    """The row's tokens, each added to it first, until it is finished or as long as it may be."""
    steps = _plainly(engine, row, sampling) if cache is None else _reading_on(row, sampling, cache, drafter)
    for token in steps:
        row.tokens.append(token)
        engine._finish([row], sampling.stop)
        yield token
        if row.finished or len(row.tokens) == sampling.max_new_tokens:
            return


def _plainly(engine: TransformersEngine, row: _Row, sampling: Sampling) -> Iterator[int]:
    with torch.no_grad():
        state = _Decoding(engine, [row], sampling)
    for step in range(sampling.max_new_tokens):
        with torch.no_grad():  # closed before a token is handed out: the reader's own mode is none of our business
            if row.tokens:
                state.advance(torch.tensor(row.tokens[-1:], device=state.device))
            tokens, _logprobs = state.choose(step)
        yield int(tokens)


def _reading_on(row: _Row, sampling: Sampling, cache: PrefixCache, drafter: Drafter | None) -> Iterator[int]:
    process, temperature, stops = processors(sampling), sampling.temperature, cache.engine.stop_ids
    uniform = uniforms([row.seed], sampling.max_new_tokens)[0].to(cache.engine.model.device)
    cache.begin(row.prompt)
    ids = list(row.prompt)
    while (step := len(ids) - len(row.prompt)) < sampling.max_new_tokens:
        rest = uniform[step:]
        proposal = drafter.propose(ids, rest[:-1]) if drafter is not None else []
        logits = cache.read([*ids[len(cache.tokens) :], *proposal], len(proposal) + 1)
        found = accepted_tokens(process, ids, proposal, logits, rest, temperature=temperature, stops=stops)
        right = sum(token == proposed for token, proposed in zip(found, proposal, strict=False))
        cache.crop(len(ids) + right)
        if drafter is not None:
            drafter.learn(len(proposal), right)
        ids += found
        yield from found
