"""The KL of answers from the base model: one answer after another, and many in one forward pass.

    python tests/benchmarks/kl.py
    python tests/benchmarks/kl.py --answers 64 --tokens 64 --batch 32 --rounds 3

The embedded model beside itself with an adapter whose weights are drawn, on answers of ``--tokens`` tokens at most to
the quickstart's held-out prompts; lengths are spread evenly. Both ways in turns; CPU seconds stand beside the clock,
because they hardly depend on what else the machine does. The figures of both must agree.

Exits with 77 where the embedded model is not installed.
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
ROOT = Path(__file__).parents[2]


def main() -> int:
    arguments = _arguments()
    import torch
    from transformers import AutoModelForCausalLM

    from alignment.chat import load_tokenizer, render_prompt
    from alignment.data.prompts import scan_prompts
    from alignment.errors import InputError
    from alignment.metrics.kl import batched_kls, response_kl
    from alignment.models.adapters import add_lora
    from alignment.models.base_model import prepare_base
    from alignment.recipe.base import Lora
    from alignment.recipe.run_settings import ModelSettings
    from alignment.rollouts.policy_pool import LoadedPolicy
    from alignment.workspace import Workspace

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        try:
            base = prepare_base(Workspace(Path(folder)), ModelSettings(base="embedded:smollm2-135m"))
        except InputError as error:
            print(f"the embedded model is not installed: {error}", file=sys.stderr)
            return SKIPPED
        tokenizer = load_tokenizer(base.path)
        plain: Any = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32).eval()
    model: Any = add_lora(plain, Lora(rank=8)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.01)

    def use(adapter: bool) -> LoadedPolicy:
        (model.base_model.enable_adapter_layers if adapter else model.base_model.disable_adapter_layers)()
        return LoadedPolicy(model, tokenizer, set())

    rows, _duplicates, _faults = scan_prompts(ROOT / "flows" / "recipes" / "quickstart" / "held_out.jsonl")
    asked = [render_prompt(tokenizer, prompt.messages) for _row, prompt in rows][: arguments.answers]
    lengths = [1 + (arguments.tokens - 1) * place // max(1, len(asked) - 1) for place in range(len(asked))]
    drawn = torch.randint(100, model.config.vocab_size, (len(asked), arguments.tokens)).tolist()
    answers = [(ids, row[:length]) for ids, row, length in zip(asked, drawn, lengths, strict=True)]
    policy, reference = (lambda: use(True)), (lambda: use(False))
    ways: dict[str, Callable[[], list[float]]] = {
        "one by one": lambda: [response_kl(policy, reference, *one) for one in answers],
        "batched": lambda: batched_kls(policy, reference, answers, batch_size=arguments.batch),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    found: dict[str, list[float]] = {}
    for _round in range(arguments.rounds):
        for name, way in ways.items():
            clock, cpu = time.perf_counter(), _cpu_seconds()
            found[name] = way()
            seconds[name].append((time.perf_counter() - clock, _cpu_seconds() - cpu))
    apart = max(abs(a - b) / max(1.0, abs(a)) for a, b in zip(*found.values(), strict=True))
    mean = sum(found["batched"]) / len(answers)
    print(f"{len(answers)} answers of 1 to {arguments.tokens} tokens; mean KL {mean:.3f}")
    for name, taken in seconds.items():
        print(f"{name}: {min(t for t, _c in taken):.2f} s, {min(c for _t, c in taken):.2f} CPU s")
    print(f"largest relative difference {apart:.1e}")
    return int(apart > 1e-4)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=32, help="how many, at most the held-out prompts")
    parser.add_argument("--tokens", type=int, default=64, help="of the longest answer")
    parser.add_argument("--batch", type=int, default=32, help="answers that pass the model together")
    parser.add_argument("--rounds", type=int, default=2, help="of each way; the fastest counts")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
