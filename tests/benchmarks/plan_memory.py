"""The memory that `rlhf plan` foresees, held against the peak of real stages on the embedded model.

    python -m tests.benchmarks plan_memory
    python -m tests.benchmarks plan_memory -- --stages sft dpo --dtype float32

Each stage runs for two or three steps in a fresh process on this processor; its peak is the kernel's own high-water
mark (VmHWM). Foreseen are the plan's parts for the same recipe and texts. "before" is what the process holds when all
that the stage needs is imported and nothing is loaded: the plan's part "program". The conversion of the model, and the
reward model that PPO needs, are made first and not counted. Wanted: within 20 %.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STAGES = ("sft", "reward", "dpo", "ppo", "full")
MIB = 2**20
GOAL = 0.2


def main() -> int:
    """Exit code: 0, whatever was measured; a failed stage ends it with 1."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--one", help="run this stage alone in the workspace given, and print its figures as JSON")
    parser.add_argument("--workspace", type=Path)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one, asked.workspace)))
        return 0
    with tempfile.TemporaryDirectory(prefix="plan-memory-") as folder:
        root = Path(folder)
        write_recipe(root, asked.dtype)
        run("base", root)
        run("pairs", root)
        wanted = set(asked.stages)
        found = {name: run(name, root) for name in STAGES if name in wanted or (name == "reward" and "ppo" in wanted)}
        show({name: figures for name, figures in found.items() if name in wanted}, foreseen(root))
    return 0


def run(stage: str, root: Path) -> dict[str, Any]:
    """A stage's figures, from a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.plan_memory", "--one", stage, "--workspace", str(root)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(ended.stderr[-2000:])
    figures: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return figures


def write_recipe(root: Path, dtype: str) -> None:
    """Texts of the quickstart in lengths as they are there: 16 demonstrations, 16 pairs, 8 prompts."""
    rows = [
        json.loads(line)
        for line in (Path("flows/recipes/quickstart/demonstrations.jsonl").read_text("utf-8").splitlines())
    ]
    prompts = [
        json.loads(line) for line in Path("flows/recipes/quickstart/prompts.jsonl").read_text("utf-8").splitlines()
    ]
    demonstrations = rows[:16]
    pairs = [
        {"prompt": one["messages"][:-1], "chosen": [one["messages"][-1]], "rejected": [other["messages"][-1]]}
        for one, other in zip(rows[16:40], rows[40:64], strict=True)
    ]
    for name, kept in (("demonstrations", demonstrations), ("prompts", prompts[:12]), ("preferences", pairs)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), "utf-8")
    training = {"batch_size": 8, "epochs": 1, "checkpoint_every": 100}
    (root / "recipe.yaml").write_text(json.dumps({
        "name": "memory",
        "model": {"base": "embedded:smollm2-135m", "dtype": dtype},
        "data": {"demonstrations": "demonstrations.jsonl", "prompts": "prompts.jsonl",
                 "preferences": "preferences.jsonl", "held_out": 0.2},
        "stages": {
            "sft": {"kind": "sft", **training},
            "pairs": {"kind": "preference_file"},
            "reward": {"kind": "reward", "preferences": "pairs", **training},
            "dpo": {"kind": "dpo", "model": "base", "preferences": "pairs", **training},
            "ppo": {"kind": "ppo", "model": "base", "reward": "reward", "steps": 2, "episodes": 16, "batch_size": 8,
                    "epochs": 1, "minibatches": 2, "checkpoint_every": 100, "sampling": {"max_new_tokens": 32}},
            "full": {"kind": "sft", "lora": None, "learning_rate": 2e-5, **training},
        },
        "resources": {"device": "cpu"},
    }), "utf-8")  # fmt: skip


def prepared(root: Path) -> tuple[Any, dict[str, Path], Any]:
    """The recipe, its files and its workspace."""
    from alignment.workspace import Workspace
    from flows.recipe_source import prepare
    from flows.services import servers

    space = Workspace(root / "workspace")
    servers.quiet_environment(space)
    resolved = prepare(str(root / "recipe.yaml"))
    return resolved.recipe, resolved.data, space


def measure(stage: str, root: Path) -> dict[str, Any]:
    """Runs one stage here, and reads this process's own figures."""
    recipe, files, space = prepared(root)
    from alignment.models.base_model import prepare_base

    base = prepare_base(space, recipe.model)
    if stage == "base":
        return {}
    import importlib

    from flows.pipeline.stage_task import execute, make_job

    importlib.import_module(recipe.stages[stage].spec.run)
    before = status("VmRSS")
    made = {"base": base} | {one.name: one for one in space.artifacts()}
    execute(make_job(stage, recipe, made, files, space))
    return {"before": before, "peak": status("VmHWM")}


def status(field: str) -> int:
    """A figure of this process in bytes, as the kernel counts it."""
    text = Path("/proc/self/status").read_text("utf-8")
    return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{field}:"))


def foreseen(root: Path) -> dict[str, Any]:
    """The plan's memory of each stage on this processor."""
    recipe, files, space = prepared(root)
    from alignment.checks.data import read_data
    from alignment.checks.model import inspect_model, read_config
    from alignment.plan import plan
    from alignment.plan.hardware import this_processor
    from alignment.plan.sizes import model_size
    from alignment.plan.texts import measure_texts

    data, faults = read_data(recipe, files)
    assert not faults, faults
    texts = measure_texts(data, recipe.data.held_out, inspect_model(recipe.model, space).tokenizer)
    size = model_size(read_config(recipe.model, space))
    plans = plan.make_plan(recipe, size, texts, [this_processor(recipe.model.dtype)], precision=recipe.model.dtype)
    return {one.name: one.machines[0].memory for one in plans}


def show(found: dict[str, Any], plans: dict[str, Any]) -> None:
    """A line for each stage: what was foreseen, part by part, what was measured, and how far apart they are."""
    parts = ("program", "weights", "gradients", "optimizer", "activations", "logits", "kv_cache")
    print(f"{'MiB':<8}" + "".join(f"{part:>12}" for part in (*parts, "foreseen", "measured", "before", "off")))
    for name, figures in found.items():
        memory = plans[name]
        off = memory.total / figures["peak"] - 1
        cells = [getattr(memory, part) / MIB for part in parts] + [memory.total / MIB, figures["peak"] / MIB]
        mark = "" if abs(off) <= GOAL else "  MISSED"
        line = "".join(f"{cell:>12.0f}" for cell in [*cells, figures["before"] / MIB])
        print(f"{name:<8}{line}{off:>+11.0%}{mark}")


if __name__ == "__main__":
    raise SystemExit(main())
