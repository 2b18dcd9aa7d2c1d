"""What each adapter trains, takes and learns: SFT of the embedded model on the same texts, in turns.

    python -m tests.benchmarks adapters
    python -m tests.benchmarks adapters -- --adapters lora prompt --rows 32 --turns 2

Each is an SFT of one epoch in a fresh process: trained weights (of the plan, which tests hold against the model), the
process's peak of memory (VmHWM), tokens per second of training, and the mean loss of the answers' tokens of other
demonstrations, beside the base's. Learning rates are those of LEARNING_RATES, not searched for.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.plan_memory import MIB, prepared, status

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {}},
    "dora": {"lora": {"dora": True}},
    "pissa": {"lora": {"init": "pissa"}},
    "ia3": {"adapter": {"kind": "ia3"}},
    "prompt": {"adapter": {"kind": "prompt", "text": "Answer in at most two plain sentences."}},
    "prefix": {"adapter": {"kind": "prefix", "text": "Answer in at most two plain sentences."}},
    "p_tuning": {"adapter": {"kind": "p_tuning"}},
    "layers": {"adapter": {"kind": "layers", "last": 4}},
    "full": {"lora": None},
}
LEARNING_RATES = {"lora": 2e-4, "dora": 2e-4, "pissa": 2e-4, "ia3": 5e-3, "prompt": 3e-3, "prefix": 3e-3,
                  "p_tuning": 1e-3, "layers": 2e-5, "full": 2e-5}  # fmt: skip
HELD_OUT = 24
DEMONSTRATIONS = Path("flows/recipes/quickstart/demonstrations.jsonl")


def main() -> int:
    """Exit code: 0, whatever was measured; a failed training ends it with 1."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--adapters", nargs="+", choices=ADAPTERS, default=list(ADAPTERS))
    parser.add_argument("--rows", type=int, default=48, help="demonstrations to train on")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="float32")
    parser.add_argument("--one", help="train this one in the workspace given, and print its figures as JSON")
    parser.add_argument("--workspace", type=Path)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one, asked.workspace)))
        return 0
    with tempfile.TemporaryDirectory(prefix="adapters-") as folder:
        root = Path(folder)
        write_recipe(root, asked.rows, asked.dtype)
        base = run("base", root)
        print(f"base: held-out loss {base['loss']:.3f}", flush=True)
        print(f"{'':<10}{'trained':>14}{'peak MiB':>10}{'tokens/s':>10}{'loss':>8}")
        for _turn in range(asked.turns):
            for name in asked.adapters:
                found = run(name, root)
                line = f"{name:<10}{found['trained']:>14,}{found['peak'] / MIB:>10.0f}{found['rate']:>10.0f}"
                print(f"{line}{found['loss']:>8.3f}", flush=True)
    return 0


def run(name: str, root: Path) -> dict[str, Any]:
    """The figures of one, from a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.adapters", "--one", name, "--workspace", str(root)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(ended.stderr[-2000:])
    figures: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return figures


def write_recipe(root: Path, rows: int, dtype: str) -> None:
    """An SFT for each adapter, on the first ``rows`` demonstrations of the quickstart."""
    lines = DEMONSTRATIONS.read_text("utf-8").splitlines()
    (root / "demonstrations.jsonl").write_text("\n".join(lines[:rows]) + "\n", "utf-8")
    (root / "held_out.jsonl").write_text("\n".join(lines[-HELD_OUT:]) + "\n", "utf-8")
    shared = {"kind": "sft", "batch_size": 8, "epochs": 1, "checkpoint_every": 1000, "max_length": 256}
    stages = {
        name: {**shared, "learning_rate": LEARNING_RATES[name], **settings} for name, settings in ADAPTERS.items()
    }
    (root / "recipe.yaml").write_text(json.dumps({
        "name": "adapters",
        "model": {"base": "embedded:smollm2-135m", "dtype": dtype},
        "data": {"demonstrations": "demonstrations.jsonl"},
        "stages": stages,
        "resources": {"device": "cpu"},
    }), "utf-8")  # fmt: skip


def measure(name: str, root: Path) -> dict[str, Any]:
    """Trains one here, and reads this process's own figures; of the base, its loss alone."""
    recipe, files, space = prepared(root)
    from alignment.models.base_model import prepare_base

    base = prepare_base(space, recipe.model)
    if name == "base":
        return {"loss": loss(base, base, recipe, root)}
    from alignment.checks.model import read_config
    from alignment.plan.sizes import model_size
    from flows.pipeline.stage_task import execute, make_job

    part = recipe.stages[name].trained_part()
    size = model_size(read_config(recipe.model, space))
    artifact = execute(make_job(name, recipe, {"base": base}, files, space))
    peak = status("VmHWM")
    return {
        "trained": size.parameters if part is None else size.trained(part),
        "peak": peak,
        "rate": artifact.tokens_trained / artifact.work_seconds,
        "loss": loss(artifact, base, recipe, root),
    }


def loss(artifact: Any, base: Any, recipe: Any, root: Path) -> float:
    """The mean negative log-likelihood of the held-out answers' tokens, one text at a time."""
    import torch

    from alignment.chat import render_example
    from alignment.data.demonstrations import numbered_demonstrations
    from alignment.models.load import load_policy

    model, tokenizer = load_policy(artifact, base, recipe.run_settings())
    total, count = 0.0, 0
    for _row, one in numbered_demonstrations(root / "held_out.jsonl")[0]:
        ids, mask = render_example(tokenizer, one.messages)
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
        found = logprobs.gather(-1, torch.tensor(ids[1:])[:, None]).squeeze(-1)[torch.tensor(mask[1:])]
        total, count = total - float(found.sum()), count + len(found)
    return total / count


if __name__ == "__main__":
    raise SystemExit(main())
