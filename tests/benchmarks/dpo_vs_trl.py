"""Our DPO stage against TRL's DPOTrainer with its defaults: seconds a pair, memory, and the loss curve.

Run it with nothing else on the machine: ``python tests/benchmarks/dpo_vs_trl.py --data hh_rlhf_harmless.jsonl.gz``.
Each run is a process of its own, the two sides in turn. Both train LoRA (rank 16, every linear layer) on the embedded
135M chat model from the same seed, on the same pairs in the same order, with the same batch and learning rate, in the
precision that the machine is fast in (TRL's default is bfloat16, which on a processor without units for it is many
times slower). Counted is all of the work: what the reference says of the pairs too, which TRL asks in every step and
ours once before.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "hh_rlhf_harmless.jsonl.gz"
BATCH, LEARNING_RATE, LONGEST = 8, 5e-5, 320
SKIPPED = 77


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=["ours", "trl"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--folder", type=Path, help="where the model and the pairs lie")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps((ours if arguments.side == "ours" else peer)(arguments)))
        return
    if not arguments.data.exists():
        print(f"no preference data at {arguments.data}: give --data", file=sys.stderr)
        sys.exit(SKIPPED)
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        prepare(arguments)
        results: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
        for seed in range(arguments.seeds):
            for side, found in results.items():
                found.append(run_side(side, seed, arguments))
                print(f"seed {seed} {side:4} {summary(found[-1])}", flush=True)
    compare(results, arguments.pairs)


def prepare(arguments: argparse.Namespace) -> None:
    """The model, and the first pairs (in the order of their digests) that are short enough."""
    sys.path.insert(0, str(ROOT))
    from alignment.chat import load_tokenizer, render_pair
    from alignment.data.jsonl import write_records
    from alignment.data.preferences import read_preferences
    from alignment.models.embedded import convert
    from alignment.training.preference.pairs import pair_columns

    convert("smollm2-135m", arguments.folder / "model")
    tokenizer = load_tokenizer(arguments.folder / "model")
    kept = []
    for pair in read_preferences(arguments.data, "hh_rlhf", 20 * arguments.pairs).pairs:
        row = pair_columns(render_pair(tokenizer, pair))
        if len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= LONGEST:
            kept.append(pair)
    write_records(arguments.folder / "preferences" / "pairs.jsonl", kept[: arguments.pairs])


def run_side(side: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [
        sys.executable, __file__, "--side", side, "--seed", str(seed), "--pairs", str(arguments.pairs),
        "--folder", str(arguments.folder),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def summary(result: dict[str, Any]) -> str:
    return (
        f"{result['seconds'] / result['pairs']:5.2f} s a pair ({result['cpu'] / result['pairs']:.2f} CPU seconds), "
        f"{result['memory']:.0f} MB above start-up, loss {' '.join(f'{loss:.4f}' for loss in result['losses'])}"
    )


def compare(results: dict[str, list[dict[str, Any]]], pairs: int) -> None:
    for name in ("seconds", "cpu", "memory"):
        mine, theirs = (sum(result[name] for result in results[side]) / len(results[side]) for side in ("ours", "trl"))
        print(
            f"  {name:8} ours {mine / pairs:.3f}, TRL {theirs / pairs:.3f} a pair: TRL's is {theirs / mine:.2f} × ours"
        )
    apart = max(
        abs(mine - theirs)
        for one, other in zip(results["ours"], results["trl"], strict=True)
        for mine, theirs in zip(one["losses"], other["losses"], strict=True)
    )
    print(f"  the loss curves are at most {apart:.4f} apart")


def resident() -> float:
    """Peak resident memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def recipe_of(arguments: argparse.Namespace) -> Any:
    from alignment.precision import natural_precision
    from alignment.recipe.recipe import Recipe

    stage = {
        "kind": "dpo", "model": "base", "preferences": "preferences", "learning_rate": LEARNING_RATE, "warmup": 0.0,
        "batch_size": BATCH, "max_length": 1024,
    }  # fmt: skip
    return Recipe.model_validate({
        "name": "benchmark", "seed": arguments.seed, "stages": {"dpo": stage},
        "model": {"base": str(arguments.folder / "model"), "dtype": natural_precision("auto")},
    })  # fmt: skip


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT))
    from alignment.durable_files import folder_digest
    from alignment.records import Artifact
    from alignment.stages.dpo import run
    from tests.contexts import stage_context

    def artifact(name: str, folder: Path) -> Artifact:
        digest = folder_digest(folder)
        return Artifact(name=name, kind="model", version=1, digest=digest, path=str(folder), key=name)

    recipe = recipe_of(arguments)
    inputs = {
        "base": artifact("base", arguments.folder / "model"),
        "preferences": artifact("preferences", arguments.folder / "preferences"),
    }
    with tempfile.TemporaryDirectory() as folder:
        output, checkpoints = Path(folder) / "output", Path(folder) / "checkpoints"
        output.mkdir()
        checkpoints.mkdir()
        context = stage_context("dpo", recipe, inputs, {}, output, checkpoints)
        before, cpu = resident(), time.process_time()
        result = run(recipe.stages["dpo"], context)
        cpu = time.process_time() - cpu
    losses = [loss for _step, loss in result.curves["loss"]]
    return {"seconds": context.work_seconds, "cpu": cpu, "pairs": arguments.pairs, "losses": losses,
            "memory": resident() - before}  # fmt: skip


def peer(arguments: argparse.Namespace) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT))
    import torch
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from alignment.data.jsonl import read_records
    from alignment.records import PreferencePair

    recipe = recipe_of(arguments)
    pairs = read_records(arguments.folder / "preferences" / "pairs.jsonl", PreferencePair)
    rows = [
        {
            "prompt": [message.model_dump() for message in pair.prompt],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for pair in pairs
    ]
    before, cpu = resident(), time.process_time()
    transformers.set_seed(arguments.seed)
    dtype = getattr(torch, recipe.model.dtype)
    model = AutoModelForCausalLM.from_pretrained(arguments.folder / "model", dtype=dtype)
    losses: list[float] = []

    class Trainer(DPOTrainer):  # type: ignore[misc]
        def log(self, logs: dict[str, float], *rest: Any, **more: Any) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))
            super().log(logs, *rest, **more)

    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder, per_device_train_batch_size=BATCH, learning_rate=LEARNING_RATE, num_train_epochs=1,
            logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, seed=arguments.seed,
            bf16=dtype == torch.bfloat16,
        )  # fmt: skip
        trainer = Trainer(
            model=model, args=config, train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(arguments.folder / "model"),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        )  # fmt: skip
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "cpu": time.process_time() - cpu, "pairs": arguments.pairs, "losses": losses,
            "memory": resident() - before}  # fmt: skip


if __name__ == "__main__":
    main()
