"""Training on 1 and 2 workers as measured, then on 8 to 512 GPUs as a stated model foresees it.

    python -m tests.benchmarks scale
    python -m tests.benchmarks scale -- --simulate        the second part alone

Measured: SFT of all weights of a small Llama by the project's own trainer, in this process and on two workers of Ray,
one thread each; and all-reduces of several sizes between two processes (gloo), from which α and β are fitted. The model
then has to foresee the two workers' step from the one worker's at half the batch: its error is printed, and is what its
larger numbers rest on. Simulated: alignment/plan/scale.py with the assumptions printed.
"""

import argparse
import json
import math
import os
import random
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

STEPS, BATCH = 8, 16
SIZES = [2**power for power in range(12, 27, 2)]  # bytes
DEVICES = (8, 16, 32, 64, 128, 256, 512)
LAYER = ((4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 14336), (4096, 14336), (14336, 4096))
ROWS, PROMPT, MEAN, SPREAD, LONGEST = 2048, 512, 600, 0.7, 4096  # answers of an RL step; log-normal lengths, cut off
TRAIN_ROWS, TRAIN_LENGTH = 2048, 1024  # of a training step: 2 M tokens
LAUNCH = 3e-5  # seconds a layer and decoding step, with CUDA graphs


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--simulate", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    if not asked.simulate:
        measure()
    simulate()
    return 0


def measure() -> None:
    """One worker, half its batch, two workers, and the messages between two."""
    from alignment.plan.scale import Cluster, fit_link

    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        root = Path(folder)
        parameters = write_recipe(root)
        seconds = messages()
        link = fit_link(SIZES, seconds, 2)
        print(f"all-reduce between 2 processes: α {link.alpha * 1e6:.0f} µs, 1/β {link.bandwidth / 1e9:.2f} GB/s")
        for size, took in zip(SIZES, seconds, strict=True):
            print(f"  {size:>10,} bytes {took * 1e3:>8.2f} ms, fitted {2 * link.ring(size, 2) * 1e3:>8.2f} ms")
        whole, half, two = (step(root, batch, workers) for batch, workers in ((BATCH, 1), (BATCH // 2, 1), (BATCH, 2)))
        travel = Cluster(8, link, link).all_reduce(4 * parameters, 2)
        # Nothing is hidden here: gloo's threads and the backward pass share the one core of each worker.
        said = half + travel
        print(f"SFT of {parameters / 1e6:.1f} M parameters, {BATCH} rows a step, one thread a worker:")
        print(f"  1 worker {whole:.2f} s a step; 2 workers {two:.2f} s: {whole / two:.2f} times as fast")
        print(f"  foreseen for 2 workers: {half:.2f} s for half the rows + {travel:.2f} s of messages = {said:.2f} s "
              f"({said / two - 1:+.0%})")  # fmt: skip


def write_recipe(root: Path) -> int:
    """SFT of all weights of a small Llama on 256 rows of about 60 tokens. Returns its parameters."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from tests.conftest import write_model

    tokenizer = AutoTokenizer.from_pretrained(write_model(root / "tiny"))
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=384, intermediate_size=1024, num_hidden_layers=9, num_attention_heads=6,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    talks = [(f"Say {at}.", f"{at} is it. " * 12) for at in range(256)]
    rows = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in talks
    ]
    (root / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return sum(parameter.numel() for parameter in model.parameters())


def step(root: Path, batch: int, workers: int) -> float:
    """Seconds of one optimizer step, the median after the first."""
    from alignment.models.base_model import prepare_base
    from alignment.recipe.recipe import Recipe
    from alignment.workspace import Workspace
    from flows.cluster import run_stage
    from flows.services import servers
    from tests.contexts import stage_context

    space = Workspace(root / f"{batch}-{workers}")
    servers.quiet_environment(space)
    recipe = Recipe.model_validate({
        "name": "scale", "model": {"base": str(root / "model"), "dtype": "float32"},
        "stages": {"sft": {"kind": "sft", "lora": None, "batch_size": batch, "epochs": STEPS * batch / 256,
                           "checkpoint_every": 1000, "max_length": 64}},
        "resources": {"device": "cpu", "threads": 1, "workers": workers},
    })  # fmt: skip
    times: list[float] = []
    context = stage_context(
        name="sft", recipe=recipe, inputs={"base": prepare_base(space, recipe.model)},
        data={"demonstrations": root / "demonstrations.jsonl"}, output=space.folder("output"),
        checkpoints=space.folder("partial", "checkpoints"), report=lambda _progress: times.append(time.perf_counter()),
    )  # fmt: skip
    import torch

    torch.set_num_threads(1)
    run_stage("alignment.stages.sft", recipe.stages["sft"], context)
    return statistics.median(later - earlier for earlier, later in pairwise(times[1:]))


def messages() -> list[float]:
    """Seconds of an all-reduce of each size between two processes, the median of nine."""
    import torch.multiprocessing as processes

    with tempfile.TemporaryDirectory(prefix="messages-") as folder:
        processes.spawn(_exchange, args=(folder,), nprocs=2)
        found: list[float] = json.loads((Path(folder) / "seconds.json").read_text())
        return found


def _exchange(rank: int, folder: str) -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = []
    for size in SIZES:
        tensor, times = torch.zeros(size // 4), []
        for _ in range(10):
            distributed.barrier()
            began = time.perf_counter()
            distributed.all_reduce(tensor)
            times.append(time.perf_counter() - began)
        found.append(statistics.median(times[1:]))
    if rank == 0:
        (Path(folder) / "seconds.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def simulate() -> None:
    """A training step and a step of reinforcement learning on H100s, a fixed amount of work on ever more of them."""
    from alignment.plan.hardware import GPUS
    from alignment.plan.scale import Cluster, Interconnect
    from alignment.plan.sizes import ModelSize

    gpu = replace(next(one for one in GPUS if one.name == "H100"), step_seconds=LAUNCH)
    cluster = Cluster(8, Interconnect(5e-6, 300e9), Interconnect(1e-5, 40e9))
    size = ModelSize(  # of Llama 3 8B (Grattafiori et al. 2024, table 3)
        parameters=2 * 128256 * 4096 + 32 * (sum(a * b for a, b in LAYER) + 2 * 4096) + 4096, vocabulary=128256,
        hidden=4096, layers=32, linears=LAYER * 32, query_width=4096, key_width=1024, inner=14336, gated=True,
        tied=False,
    )  # fmt: skip
    print(f"""
Simulated: {size.parameters / 1e9:.2f} G parameters in bfloat16, all weights trained, fully sharded, on H100s.
Assumed: {gpu.share:.0%} of {gpu.bfloat16 / 1e12:.0f} TFLOP/s in training and reading;
  decoding reads weights and cache at {gpu.bandwidth / 1e12:.2f} TB/s, {LAUNCH * 1e6:.0f} µs a layer at least;
  {cluster.per_node} GPUs a node at {said(cluster.inside)}, nodes at {said(cluster.between)} a GPU;
  weights gathered twice and gradients scattered once a step beside the work; no failures, no data loading.
  training: {TRAIN_ROWS} rows of {TRAIN_LENGTH} tokens a step;
  RL: {ROWS} answers to prompts of {PROMPT} tokens, lengths log-normal (mean {MEAN}, σ {SPREAD}, at most {LONGEST}),
  drawn and trained on in turn by the same GPUs, one pass; weights are broadcast after the step; rewards cost nothing.
Efficiency is against 8 GPUs.
""")
    trained(cluster, gpu, size)
    reinforced(cluster, gpu, size)


def said(link: Any) -> str:
    """A link in words."""
    return f"{link.bandwidth / 1e9:.0f} GB/s and {link.alpha * 1e6:.0f} µs"


def trained(cluster: Any, gpu: Any, size: Any) -> None:
    """The table of training steps."""
    heads = ("step", "messages", "waited for", "tokens/s", "efficiency")
    print(f"{'GPUs':>5}" + "".join(f"{head:>12}" for head in heads))
    first = None
    for devices in DEVICES:
        seconds, waiting = training(cluster, gpu, size, TRAIN_ROWS * TRAIN_LENGTH, TRAIN_LENGTH, devices)
        travel = 3 * cluster.half(2 * size.parameters, devices)
        rate = TRAIN_ROWS * TRAIN_LENGTH / seconds
        first = first or rate / devices
        cells = f"{seconds:>11.2f}s{travel:>11.2f}s{waiting / seconds:>12.0%}{rate:>12,.0f}"
        print(f"{devices:>5}{cells}{rate / devices / first:>12.0%}")


def training(cluster: Any, gpu: Any, size: Any, tokens: float, length: float, devices: int) -> tuple[float, float]:
    """(seconds of a training step over tokens, seconds of it that wait for messages)."""
    from alignment.plan.scale import training_step
    from alignment.plan.work import Pass, StageWork, flops

    work = StageWork("train", "sft", trainable=size.parameters, full=True)
    own = Pass(tokens / devices, tokens / devices, 1, length / 2, tokens / devices, tokens / devices, trains=True)
    compute = flops(own, size, work) / (gpu.share * gpu.bfloat16)
    return training_step(compute, 2 * size.parameters, 2 * size.parameters, cluster, devices, "fsdp")


def reinforced(cluster: Any, gpu: Any, size: Any) -> None:
    """The table of steps of reinforcement learning."""
    from alignment.plan.scale import longest_answers

    draw = random.Random(0)
    centre = math.log(MEAN) - SPREAD**2 / 2
    spread = [min(LONGEST, max(1, round(draw.lognormvariate(centre, SPREAD)))) for _ in range(20000)]
    mean = sum(spread) / len(spread)
    heads = ("decoding", "last ones", "training", "weights", "answers/s", "efficiency")
    print(f"\n{'GPUs':>5}{'step':>10}" + "".join(f"{head:>11}" for head in heads))
    first = None
    for devices in DEVICES:
        usual, last = longest_answers(spread, ROWS, devices, rounds=20)
        decoding = decode(gpu, size, ROWS / devices, mean, usual)
        waiting = decode(gpu, size, ROWS / devices, mean, last) - decoding
        update, _ = training(cluster, gpu, size, ROWS * (PROMPT + mean), PROMPT + mean, devices)
        travel = cluster.broadcast(2 * size.parameters, devices)
        seconds = decoding + waiting + update + travel
        rate = ROWS / seconds
        first = first or rate / devices
        cells = "".join(f"{part / seconds:>11.0%}" for part in (decoding, waiting, update, travel))
        print(f"{devices:>5}{seconds:>9.1f}s{cells}{rate:>11.1f}{rate / devices / first:>11.0%}")


def decode(gpu: Any, size: Any, rows: float, mean: float, steps: float) -> float:
    """Seconds in which one GPU draws its rows, until its longest is done; those that end make room for no others."""
    from alignment.plan.work import SamplingPass, StageWork, flops, key_value_bytes

    work = StageWork("draw", "sample")
    reading = flops(SamplingPass(rows, math.ceil(rows), 0, rows * PROMPT, PROMPT), size, work) / (
        gpu.share * gpu.bfloat16
    )
    weights = 2 * (size.matrix + size.head)
    alive = rows * mean / steps  # on average over the steps
    cache = key_value_bytes(size, "bfloat16") * alive * (PROMPT + mean / 2)
    compute = 2 * (size.matrix + size.head) * alive / (gpu.share * gpu.bfloat16)
    return reading + steps * max((weights + cache) / gpu.bandwidth, compute, size.layers * gpu.step_seconds)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
