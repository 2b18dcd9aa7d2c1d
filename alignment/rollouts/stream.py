"""An answer word by word, as a person who waits for it wants to read it. Many answers at once are an engine's work."""

from collections.abc import Generator, Sequence

import torch

from alignment.records import Sampling
from alignment.rollouts.transformers_engine import TransformersEngine, _Decoding, _Row

_HALF_A_CHARACTER = "�"  # what a tokenizer makes of bytes whose rest is still to come


def stream(
    engine: TransformersEngine, prompt: Sequence[int], *, sampling: Sampling, seed: int
) -> Generator[str, None, bool]:
    """Yields the text so far after every token: the last is what ``engine.generate`` gives for this seed.

    Returns whether the answer ended by itself; False: it was cut off at its longest length.

    The model must be in evaluation mode. Several streams may be read in turns, in one thread or in many. Raises
    ValueError for an empty prompt, or for beam search, which has no first words before its last.
    """
    if not prompt or sampling.beams > 1:
        raise ValueError("a stream needs a prompt, and draws or takes one token after another")
    row = _Row(tuple(prompt), seed, 0)
    with torch.no_grad():
        state = _Decoding(engine, [row], sampling)
    for step in range(sampling.max_new_tokens):
        with torch.no_grad():  # closed before the text is handed out: the reader's own mode is none of our business
            if row.tokens:
                state.advance(torch.tensor(row.tokens[-1:], device=state.device))
            tokens, _logprobs = state.choose(step)
        row.tokens.append(int(tokens))
        engine._finish([row], sampling.stop)
        text = row.text if row.text is not None else str(engine.tokenizer.decode(row.tokens, skip_special_tokens=True))
        yield text if row.finished else text.rstrip(_HALF_A_CHARACTER)
        if row.finished:
            return True
    return False
