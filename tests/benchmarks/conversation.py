"""Talking with SmolLM2: a second turn with and without its prefix cache, and summaries with and without prompt look-up.

    python tests/benchmarks/conversation.py --tokens 1000 --lookup 10 --rounds 3

Both sides are our own greedy decoding in this process, in turns, in the number format that the machine is fast in. The
latency is the time to the first token. Beside each ratio stands how many answers are the same token for token: reading
several tokens at once rounds otherwise than reading one, which in bfloat16 may decide between two tokens as likely.
With ``--draft`` a smaller model's folder proposes tokens for the summaries as well. Exits with 77 where the embedded
model is not installed.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

SKIPPED = 77
PROMPTS = Path(__file__).parents[2] / "flows" / "recipes" / "quickstart" / "held_out.jsonl"


def main() -> int:
    arguments = _arguments()
    import torch

    from alignment.errors import InputError
    from alignment.models.embedded import convert
    from alignment.precision import natural_precision
    from alignment.recipe.resources import Resources

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    dtype = arguments.dtype or natural_precision(Resources(device="cpu").device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(arguments.model or f"{folder}/smollm2")
        try:
            if not arguments.model:
                convert("smollm2-135m", path)
        except InputError as error:
            print(f"the embedded model is not installed: {error}", file=sys.stderr)
            return SKIPPED
        engine = loaded(path, dtype)
    print(f"{dtype}, {torch.get_num_threads()} threads, {arguments.rounds} rounds")
    second_turn(engine, arguments)
    summaries(engine, arguments, dtype)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1000, help="of the first turn")
    parser.add_argument("--lookup", type=int, default=10, help="tokens that are proposed at once")
    parser.add_argument("--texts", type=int, default=4, help="to be summarised")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"])
    parser.add_argument("--model", help="a folder, instead of the embedded SmolLM2")
    parser.add_argument("--draft", help="a smaller model's folder")
    return parser.parse_args()


def loaded(path: Path, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from alignment.chat import load_tokenizer
    from alignment.rollouts.factory import local_engine

    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    return local_engine(model, load_tokenizer(path))


def texts(kind: str) -> Iterator[str]:
    """The quickstart's held-out prompts of one kind."""
    from alignment.data.prompts import numbered_prompts

    prompts, _duplicates = numbered_prompts(PROMPTS)
    yield from (prompt.messages[-1].content for _row, prompt in prompts if prompt.kind == kind)


def second_turn(engine: Any, arguments: argparse.Namespace) -> None:
    """Latency of the first turn, and of the second with and without what was read in the first."""
    from alignment.chat import render_prompt
    from alignment.records import Message, Sampling
    from alignment.rollouts.prefix_cache import PrefixCache
    from alignment.rollouts.stream import stream

    tokenizer, sampling = engine.tokenizer, Sampling(temperature=0.0, max_new_tokens=16)
    text = "\n".join(texts("summarising")) * 20
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][: arguments.tokens]
    begun = [Message(role="user", content=tokenizer.decode(ids))]

    def answer(messages: Sequence[Message], cache: PrefixCache | None) -> tuple[float, str]:
        prompt = render_prompt(tokenizer, messages)
        started = time.perf_counter()
        coming = stream(engine, prompt, sampling=sampling, seed=0, cache=cache)
        first = next(coming)
        latency = time.perf_counter() - started
        return latency, [first, *coming][-1]

    seconds: dict[str, list[float]] = {"first turn": [], "second, cache": [], "second, no cache": []}
    same = 0
    for _ in range(arguments.rounds):
        cache = PrefixCache(engine)
        first, said = answer(begun, cache)
        going_on = [*begun, Message(role="assistant", content=said), Message(role="user", content="Which is shortest?")]
        kept, one = answer(going_on, cache)
        anew, other = answer(going_on, None)
        for name, value in zip(seconds, (first, kept, anew), strict=True):
            seconds[name].append(value)
        same += one == other
    medians = {name: median(values) for name, values in seconds.items()}
    print(f"latency behind {arguments.tokens} tokens: " + ", ".join(f"{k} {v:.3f} s" for k, v in medians.items()))
    for name in ("first turn", "second, no cache"):
        ratios = [kept / other for kept, other in zip(seconds["second, cache"], seconds[name], strict=True)]
        print(f"  second turn with the cache / {name}: {median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})")
    print(f"  same answers: {same} of {arguments.rounds}", flush=True)


def summaries(engine: Any, arguments: argparse.Namespace, dtype: str) -> None:
    """Tokens a second of summaries, plain and with proposed tokens."""
    from alignment.chat import render_prompt
    from alignment.records import Message, Sampling
    from alignment.rollouts.drafts import Drafter, DraftModel, PromptLookup
    from alignment.rollouts.prefix_cache import PrefixCache
    from alignment.rollouts.stream import complete

    sampling = Sampling(temperature=0.0, max_new_tokens=arguments.new_tokens)
    asked = [[Message(role="user", content=text)] for text in list(texts("summarising"))[: arguments.texts]]
    prompts = [render_prompt(engine.tokenizer, messages) for messages in asked]
    sides: dict[str, Callable[[], Drafter | None]] = {"plain": lambda: None}
    sides[f"look-up of {arguments.lookup}"] = lambda: PromptLookup(arguments.lookup)
    if arguments.draft:
        draft, size = loaded(Path(arguments.draft), dtype), engine.model.config.get_text_config().vocab_size
        sides["draft"] = lambda: DraftModel(draft, sampling, vocabulary=size)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    answers: dict[str, list[tuple[int, ...]]] = {}
    shares: dict[str, str] = {}
    for _ in range(arguments.rounds):
        for name, made in sides.items():
            drafter, started = made(), time.perf_counter()
            answers[name] = [
                complete(PrefixCache(engine), prompt, sampling=sampling, seed=0, drafter=drafter).tokens
                for prompt in prompts
            ]
            seconds[name].append(time.perf_counter() - started)
            shares[name] = "" if drafter is None else f", {drafter.accepted} of {drafter.proposed} accepted"
    plain = answers["plain"]
    count = sum(map(len, plain))
    print(f"summaries of {len(prompts)} texts: plain {count / median(seconds['plain']):.1f} tokens/s")
    for name in list(sides)[1:]:
        ratios = [slow / fast for slow, fast in zip(seconds["plain"], seconds[name], strict=True)]
        same = sum(one == other for one, other in zip(plain, answers[name], strict=True))
        print(f"  {name}: {median(ratios):.2f} × ({min(ratios):.2f}–{max(ratios):.2f}){shares[name]}, "
              f"{same} of {len(plain)} the same", flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
