"""Judging pairs by label probabilities: pairs a second and share of the machine's arithmetic; agreement with people.

    python tests/benchmarks/judges.py                                speed, then agreement on each data set there is
    python tests/benchmarks/judges.py --speed-only --pairs 64 --rounds 3
    python tests/benchmarks/judges.py --speed-only --pairs 1000 --rounds 1 --shared-only --answers 4 --form score
    python tests/benchmarks/judges.py --data ../shared/data --agreement-pairs 200 --reward-pairs 400

*Speed*: the pairs are answers to the quickstart's demonstrations, each against itself with a sentence put before it,
in both orders; with ``--answers 4`` the six pairs among four answers to a prompt, as a stage compares several of a
model's own. ``--form score`` grades each answer by itself, which is the same in both orders. ``shared`` computes every
distinct beginning once, ``plain`` runs each question whole, in padded batches; the logits are the same. The bound is
what the arithmetic allows: the operations of the tokens that have to be computed, at the rate of the machine's own
matrix product, measured beside it. CPU seconds stand beside the clock, because they hardly depend on what else the
machine does.

*Agreement*: of the embedded model as a judge, and of a reward model that is trained on ``--reward-pairs`` pairs (or the
one in ``--reward-model``), with the human choice in HH-RLHF and Open-Assistant, with 95 % intervals. The defaults take
a few minutes for each data set and say little: give more pairs for narrower intervals.

Exits with 77 where the embedded model is not installed.
"""

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
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
    from alignment.errors import InputError
    from alignment.models.base_model import prepare_base
    from alignment.precision import natural_precision
    from alignment.recipe.run_settings import ModelSettings
    from alignment.workspace import Workspace

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.dtype = arguments.dtype or natural_precision(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        try:
            base = prepare_base(Workspace(Path(folder)), ModelSettings(base=arguments.model or "embedded:smollm2-135m"))
        except InputError as error:
            print(f"the embedded model is not installed: {error}", file=sys.stderr)
            return SKIPPED
        if not arguments.agreement_only:
            model = AutoModelForCausalLM.from_pretrained(base.path, dtype=getattr(torch, arguments.dtype)).eval()
            model.to(arguments.device)
            speed(model, load_tokenizer(base.path), arguments)
        if not arguments.speed_only:
            agreement(base, arguments, Path(folder))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answers", type=int, choices=range(2, 5), default=2, help="to a prompt, all compared")
    parser.add_argument("--form", choices=["pairwise", "score"], default="pairwise")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"])
    parser.add_argument("--model", help="a folder, instead of the embedded SmolLM2")
    parser.add_argument("--shared-only", action="store_true", help="leave out what it is compared with")
    parser.add_argument("--speed-only", action="store_true")
    parser.add_argument("--agreement-only", action="store_true")
    parser.add_argument("--data", help="the folder of the data sets")
    parser.add_argument("--agreement-pairs", type=int, default=32, help="pairs that the judge is asked; 0: none")
    parser.add_argument("--reward-pairs", type=int, default=32, help="pairs to train a reward model on; 0: none")
    parser.add_argument("--reward-held-out", type=int, default=64, help="pairs that the reward model is measured on")
    parser.add_argument("--reward-model", help="a reward model's folder, instead of training one")
    parser.add_argument("--max-characters", type=int, default=800, help="of a prompt and its longer answer")
    parser.add_argument("--question", default="Which answer is more helpful, correct and to the point?")
    return parser.parse_args()


def speed(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> None:
    """Rounds of both ways in turn, each with the arithmetic's own bound beside it."""
    import torch

    peak = matmul_rate(model)
    print(
        f"{arguments.pairs} pairs among {arguments.answers} answers, {arguments.form}, both orders, {arguments.dtype}, "
        f"{torch.get_num_threads()} threads; wanted "
        f"{WANTED:g} pairs/s; matrix products of the model's own shapes: {peak / 1e9:.0f} GFLOP/s by the clock"
    )
    for number in range(1, arguments.rounds + 1):
        for way in ("shared", "plain")[: 1 if arguments.shared_only else 2]:
            found = measured(model, tokenizer, arguments, peak, shares=way == "shared")
            print(f"round {number} {way:<6} {found}", flush=True)


def matmul_rate(model: Any, rows: int = 1024) -> float:
    """Operations a second of the product of (rows, hidden) and (hidden, intermediate), the best of several runs."""
    import torch

    config = model.config
    left = torch.randn(rows, config.hidden_size, dtype=model.dtype, device=model.device)
    right = torch.randn(config.hidden_size, config.intermediate_size, dtype=model.dtype, device=model.device)
    operations = 2.0 * rows * config.hidden_size * config.intermediate_size
    return operations / min(_seconds(lambda: left @ right) for _ in range(20))


def _seconds(work: Callable[[], Any]) -> float:
    import torch

    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def operations_per_token(model: Any) -> float:
    """Of the trunk's matrix products: two for each weight that is not an embedding. Attention is not counted."""
    weights = sum(parameter.numel() for parameter in model.base_model.parameters())
    return 2.0 * (weights - model.get_input_embeddings().weight.numel())


def measured(model: Any, tokenizer: Any, arguments: argparse.Namespace, peak: float, *, shares: bool) -> str:
    """One pass over all pairs by a fresh judge, whose common beginning is not computed yet."""
    from alignment.judges.logprob_judge import LabelJudge
    from alignment.recipe.judges import LabelProbabilitiesJudge

    settings = LabelProbabilitiesJudge(kind="label_probabilities", form=arguments.form, min_label_mass=0.0)
    judge = LabelJudge(settings, model, tokenizer, "embedded")
    judge.reader.shares = judge.reader.shares and shares
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    found = asyncio.run(judge.judge(comparisons(arguments.pairs, arguments.answers)))
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert all(one.read for one in found)
    computed = judge.reader.computed / len(found)
    bound = peak / (computed * operations_per_token(model))
    return (
        f"{len(found) / seconds:6.2f} pairs/s by the clock, {len(found) / spent:6.2f} a CPU second; "
        f"{judge.tally.prompt_tokens / len(found):.0f} tokens a pair, {computed:.0f} computed; the arithmetic allows "
        f"{bound:.2f} pairs/s, of which this is {len(found) / seconds / bound:.0%}"
    )


def agreement(base: Any, arguments: argparse.Namespace, folder: Path) -> None:
    """Each data set that is there, and a line for each that is not."""
    from _agreement import NAMES, data_folder, measure

    for name in NAMES:
        path = data_folder(arguments.data) / f"{name}.jsonl.gz"
        if path.is_file():
            measure(name, path, base, arguments, folder / name)
        else:
            print(f"{name}: skipped, no file {path}; give its folder with --data")


def comparisons(count: int, answers: int = 2) -> list[Any]:
    """Pairs among ``answers`` answers, of different lengths, to each of the quickstart's demonstrations."""
    from itertools import combinations

    from alignment.records import Comparison, Message, Prompt, Response, Sampling

    lines = (ROOT / "flows/recipes/quickstart/demonstrations.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line)["messages"] for line in lines]
    made: list[Any] = []
    number = 0
    while len(made) < count:
        (asked, *_), (*_, answer) = rows[number % len(rows)], rows[number % len(rows)]
        other = rows[(number + 1) % len(rows)][-1]["content"]
        said = answer["content"]
        texts = (said, f"Sure! Here is what I can tell you about it, number {number}. {said}", other, f"{other} {said}")
        prompt = Prompt(id=f"p{number}", messages=(Message(role="user", content=asked["content"]),))
        responses = [
            Response(id=f"{number}-{place}", prompt_id=prompt.id, text=text, model="m", sampling=Sampling(), seed=0,
                     tokens=1, finished=True)
            for place, text in enumerate(texts[:answers])
        ]  # fmt: skip
        made += [
            Comparison(id=f"{left.id}:{right.id}", prompt=prompt, responses=(left, right))
            for left, right in combinations(responses, 2)
        ]
        number += 1
    return made[:count]


if __name__ == "__main__":
    sys.exit(main())
