"""Grade-school mathematics (GSM8K): the embedded model greedy, and the majority of several drawn answers.

    python tests/benchmarks/gsm8k.py                            a few problems, some minutes
    python tests/benchmarks/gsm8k.py --problems 200 --votes 8 --batch 64

An answer is right where its last number is the reference's (Cobbe et al. 2021). The majority is over the last numbers
of ``--votes`` answers drawn at temperature ``--temperature`` (Wang et al. 2022, self-consistency); a tie falls to the
number that was drawn first, and answers without a number do not vote. Intervals are 95 %. Exits with 77 where the
embedded model or the data is not there.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

SKIPPED = 77
ROOT = Path(__file__).parents[2]
ASK = "Solve the problem step by step in a few short lines. End with a line that says: The answer is <number>."


def main() -> int:
    arguments = _arguments()
    folder = Path(arguments.data or os.environ.get("RLHF_FLOWS_DATA") or ROOT / "shared" / "data")
    path = folder / "gsm8k_train_2000.jsonl.gz"
    if not path.is_file():
        print(f"no file {path}; give its folder with --data", file=sys.stderr)
        return SKIPPED

    import torch

    from alignment.errors import InputError
    from alignment.models.base_model import prepare_base
    from alignment.precision import natural_precision
    from alignment.recipe.run_settings import ModelSettings
    from alignment.workspace import Workspace

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    dtype = arguments.dtype or natural_precision("auto")
    with tempfile.TemporaryDirectory() as space:
        try:
            base = prepare_base(Workspace(Path(space)), ModelSettings(base=arguments.model or "embedded:smollm2-135m"))
        except InputError as error:
            print(f"the embedded model is not installed: {error}", file=sys.stderr)
            return SKIPPED
        solve(base.path, path, dtype, arguments)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", type=int, default=12)
    parser.add_argument("--votes", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--new-tokens", type=int, default=160)
    parser.add_argument("--batch", type=int, default=48, help="answers that are drawn together")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"])
    parser.add_argument("--model", help="a folder, instead of the embedded SmolLM2")
    parser.add_argument("--data", help="the folder of the data set")
    return parser.parse_args()


def problems(path: Path, count: int) -> list[tuple[str, Decimal]]:
    """(question, number) of ``count`` problems, in the order of their digests: no part of the file is preferred."""
    from alignment.data.jsonl import read_rows
    from alignment.digests import content_id
    from alignment.metrics.short_answers import last_number

    rows = [row for _number, row in read_rows(path)]
    chosen = sorted(rows, key=lambda row: content_id(row["question"]))[:count]
    found = []
    for row in chosen:
        number = last_number(row["answer"].rpartition("####")[2])
        assert number is not None, row["question"]
        found.append((row["question"], number))
    return found


def majority(numbers: Sequence[Decimal | None]) -> Decimal | None:
    """The number that most answers end in; the one drawn first where several are level."""
    votes = Counter(number for number in numbers if number is not None)
    return votes.most_common(1)[0][0] if votes else None  # equal counts come in the order in which they were met


def solve(model_path: str, path: Path, dtype: str, arguments: argparse.Namespace) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from alignment.chat import load_tokenizer, render_prompt
    from alignment.metrics.short_answers import last_number
    from alignment.models.families import stop_ids
    from alignment.records import Message, Sampling
    from alignment.rollouts.transformers_engine import TransformersEngine

    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, dtype)).eval()
    tokenizer = load_tokenizer(model_path)
    engine = TransformersEngine(model, tokenizer, stop_ids=stop_ids(model, tokenizer), batch_size=arguments.batch)
    asked = problems(path, arguments.problems)
    prompts = [
        render_prompt(tokenizer, [Message(role="user", content=f"{ASK}\n\nProblem: {question}")])
        for question, _number in asked
    ]
    print(f"{len(asked)} problems, {dtype}, {torch.get_num_threads()} threads, at most {arguments.new_tokens} tokens")
    for name, temperature, count in (("greedy", 0.0, 1), (f"majority of {arguments.votes}", arguments.temperature,
                                                           arguments.votes)):  # fmt: skip
        started = time.perf_counter()
        sampling = Sampling(temperature=temperature, max_new_tokens=arguments.new_tokens)
        seeds = [arguments.seed * 100_003 + number for number in range(len(asked) * count)]
        drawn = engine.generate(prompts, sampling=sampling, seeds=seeds, per_prompt=count)
        seconds = time.perf_counter() - started
        read = [[last_number(one.text) for one in group] for group in drawn]
        _show(name, [majority(group) for group in read], read, drawn, asked, seconds)


def _show(
    name: str, said: Sequence[Any], read: Sequence[Any], drawn: Sequence[Any], asked: Sequence[Any], seconds: float
) -> None:
    from alignment.evaluation.win_rate import win_rate

    right = [float(number == wanted) for number, (_question, wanted) in zip(said, asked, strict=True)]
    single = [float(n == wanted) for group, (_question, wanted) in zip(read, asked, strict=True) for n in group]
    found = win_rate(right)
    answers = [one for group in drawn for one in group]
    tokens = sum(len(one.tokens) for one in answers)
    print(
        f"{name:<14} {100 * found.value:.1f} % right ({100 * found.low:.1f} to {100 * found.high:.1f}; n = {found.n}); "
        f"a single answer {100 * sum(single) / len(single):.1f} %; {sum(one.finished for one in answers)} of "
        f"{len(answers)} answers ended by themselves; {tokens / seconds:.0f} tokens/s, {seconds:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
