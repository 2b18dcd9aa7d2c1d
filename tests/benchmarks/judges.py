"""Judging pairs with the embedded model through label probabilities: pairs a second, both orders of each.

    python tests/benchmarks/judges.py --pairs 64 --rounds 3

The pairs are answers to the quickstart's demonstrations: each against itself with a sentence put before it. ``shared``
computes every distinct beginning once, ``plain`` runs each question whole, in padded batches; the logits are the same.
CPU seconds stand beside the clock, because they hardly depend on what else the machine does. Exits with 77 where the
embedded model is not installed.
"""

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SKIPPED = 77
ROOT = Path(__file__).parents[2]
WANTED = 5.0  # pairs a second, on two cores


def main() -> int:
    arguments = _arguments()
    import torch
    from transformers import AutoModelForCausalLM

    from alignment.chat import load_tokenizer
    from alignment.faults import InputError
    from alignment.models.embedded import convert
    from alignment.models.precision import natural_precision
    from alignment.recipe import Resources

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    dtype = arguments.dtype or natural_precision(Resources())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(arguments.model or f"{folder}/smollm2")
        try:
            if not arguments.model:
                convert("smollm2-135m", path)
        except InputError as error:
            print(f"the embedded model is not installed: {error}", file=sys.stderr)
            return SKIPPED
        model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
        tokenizer = load_tokenizer(path)
    print(
        f"{arguments.pairs} pairs, both orders, {dtype}, {torch.get_num_threads()} threads; wanted {WANTED:g} pairs/s"
    )
    for number in range(1, arguments.rounds + 1):
        for way in ("shared", "plain")[: 1 if arguments.shared_only else 2]:
            print(
                f"round {number} {way:<6} {measured(model, tokenizer, arguments, shares=way == 'shared')}", flush=True
            )
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"])
    parser.add_argument("--model", help="a folder, instead of the embedded SmolLM2")
    parser.add_argument("--shared-only", action="store_true", help="leave out what it is compared with")
    return parser.parse_args()


def measured(model: Any, tokenizer: Any, arguments: argparse.Namespace, *, shares: bool) -> str:
    """One pass over all pairs by a fresh judge, whose common beginning is not computed yet."""
    from alignment.preferences.judges.labels import LabelJudge
    from alignment.preferences.judges.settings import LabelProbabilitiesJudge

    settings = LabelProbabilitiesJudge(kind="label_probabilities", min_label_mass=0.0)
    judge = LabelJudge(settings, model, tokenizer, "embedded")
    judge.reader.shares = judge.reader.shares and shares
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    found = asyncio.run(judge.judge(comparisons(arguments.pairs)))
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert all(one.read for one in found)
    return (
        f"{len(found) / seconds:6.2f} pairs/s by the clock, {len(found) / spent:6.2f} a CPU second, "
        f"{judge.tally.prompt_tokens / len(found):.0f} tokens a pair before sharing"
    )


def comparisons(count: int) -> list[Any]:
    """Pairs over the quickstart's demonstrations, of different lengths."""
    import json

    from alignment.records import Comparison, Message, Prompt, Response, Sampling

    lines = (ROOT / "flows/recipes/quickstart/demonstrations.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    made = []
    for number in range(count):
        row = rows[number % len(rows)]
        asked, answer = (row["messages"][0]["content"], row["messages"][-1]["content"]) if "messages" in row else (
            row["prompt"], row["completion"]
        )  # fmt: skip
        prompt = Prompt(id=f"p{number}", messages=(Message(role="user", content=asked),))
        longer = f"Sure! Here is what I can tell you about it, number {number}. {answer}"
        responses = tuple(
            Response(id=f"{number}{side}", prompt_id=prompt.id, text=text, model="m", sampling=Sampling(), seed=0,
                     tokens=1, finished=True)
            for side, text in (("l", answer), ("r", longer))
        )  # fmt: skip
        made.append(Comparison(id=f"c{number}", prompt=prompt, responses=responses))
    return made


if __name__ == "__main__":
    sys.exit(main())
