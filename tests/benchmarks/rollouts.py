"""Rollouts on SmolLM2: our engine against `model.generate`, in turns, same prompts, same number of tokens.

    python tests/benchmarks/rollouts.py --sequences 64 --new-tokens 64 --rounds 3

No token ends an answer, so that both sides draw as many; sampling is from the whole distribution at temperature 1, in
the number format that the machine is fast in. The prompts are of 8 to 64 tokens, each asked ``--per-prompt`` times.
CPU seconds stand beside the clock, because they hardly depend on what else the machine does. Exits with 77 where the
embedded model is not installed.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SKIPPED = 77


def main() -> int:
    arguments = _arguments()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alignment.errors import InputError
    from alignment.models.embedded import convert
    from alignment.precision import natural_precision
    from alignment.recipe.resources import Resources

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    resources = Resources(device=arguments.device)
    dtype = getattr(torch, arguments.dtype or natural_precision(resources.device))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(arguments.model or f"{folder}/smollm2")
        try:
            if not arguments.model:
                convert("smollm2-135m", path)
        except InputError as error:
            print(f"the embedded model is not installed: {error}", file=sys.stderr)
            return SKIPPED
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval().to(arguments.device)
        tokenizer = AutoTokenizer.from_pretrained(path)
    compare({"generate": generate(model, arguments), "ours": ours(model, tokenizer, arguments)}, arguments, dtype)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--per-prompt", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"])
    parser.add_argument("--model", help="a folder, instead of the embedded SmolLM2")
    return parser.parse_args()


def prompts(count: int) -> list[list[int]]:
    """Of 8 to 64 tokens, drawn from the middle of the vocabulary."""
    import torch

    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 65, (count,), generator=generator).tolist()
    return [torch.randint(500, 20_000, (length,), generator=generator).tolist() for length in lengths]


def generate(model: Any, arguments: argparse.Namespace) -> Callable[[], None]:
    """One round of `model.generate`: left-padded, all sequences in one batch."""
    import torch

    asked = [ids for ids in prompts(arguments.sequences // arguments.per_prompt) for _ in range(arguments.per_prompt)]
    width = max(map(len, asked))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in asked], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in asked]).to(model.device)

    def round_() -> None:
        model.generate(
            ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0,
            max_new_tokens=arguments.new_tokens, min_new_tokens=arguments.new_tokens,
        )  # fmt: skip

    return round_


def ours(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> Callable[[], None]:
    """One round of our engine."""
    from alignment.records import Sampling
    from alignment.rollouts.transformers_engine import TransformersEngine

    engine = TransformersEngine(model, tokenizer, stop_ids={-1}, batch_size=arguments.sequences)
    asked = prompts(arguments.sequences // arguments.per_prompt)
    seeds = range(len(asked) * arguments.per_prompt)

    def round_() -> None:
        engine.generate(asked, sampling=Sampling(max_new_tokens=arguments.new_tokens), seeds=seeds,
                        per_prompt=arguments.per_prompt)  # fmt: skip

    return round_


def compare(sides: dict[str, Callable[[], None]], arguments: argparse.Namespace, dtype: Any) -> None:
    """Times both in turns, and prints the medians."""
    tokens = arguments.sequences * arguments.new_tokens
    clock: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, round_ in sides.items():
            started, cpu = time.perf_counter(), time.process_time()
            round_()
            clock[name].append(time.perf_counter() - started)
            processor[name].append(time.process_time() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{arguments.sequences} × {arguments.new_tokens} tokens, {dtype}, {arguments.rounds} rounds, {peak:.0f} MB")
    for what, seconds in (("tokens/s", clock), ("tokens per CPU second", processor)):
        rate = {name: tokens / sorted(values)[len(values) // 2] for name, values in seconds.items()}
        print(f"  {what:22} ours {rate['ours']:.0f}, generate {rate['generate']:.0f}: "
              f"{rate['ours'] / rate['generate']:.2f} ×", flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
