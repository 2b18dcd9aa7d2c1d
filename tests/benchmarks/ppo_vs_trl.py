"""Our PPO against the last PPO that TRL had (1.10.0): episodes per second, memory, and the true reward reached.

Run it with nothing else on the machine: ``python tests/benchmarks/ppo_vs_trl.py``. Each run is a process of its own,
the two sides in turn. Both train all weights of the same model from the same weights, on the same prompts, with the
same reward, batch, new tokens, epochs and learning rate; answers have no stop token, so both sample the same number
of tokens. TRL has its defaults elsewhere (float32 on a processor); ours is in what the machine is fast in, bfloat16
(with float32 master weights) or float32, its critic a head on the trunk.

The reward is a rule, so it is the true one: the share of an answer's tokens that are of the first quarter of the
vocabulary. A random policy gets 0.25.

CPU seconds are counted beside the clock, because they hardly depend on what else the machine does.
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

from _shapes import SHAPES

TRL = "trl==1.10.0"
ROOT = Path(__file__).parents[2]
BATCH, NEW_TOKENS, EPOCHS, PROMPTS, LEARNING_RATE = 32, 48, 4, 256, 3e-4
VOCABULARY = 4096
TARGET = VOCABULARY // 4
SKIPPED = 77  # the exit code where the peer cannot be had


def main() -> None:
    arguments = parse()
    if arguments.side:
        print(json.dumps(SIDES[arguments.side](arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        trl = arguments.trl or install_trl(folder)
        results: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for seed in range(arguments.seeds):
            for side in SIDES:
                results[side].append(run_side(side, seed, trl, arguments))
                print(f"seed {seed} {side:5} {summary(results[side][-1])}", flush=True)
    compare(results, arguments.updates)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=list(SIDES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=8, help="batches of 32 episodes")
    parser.add_argument("--trl", help=f"a folder that holds {TRL} already")
    parser.add_argument("--model", default="7m", help="7m, 135m (its shape alone), or a causal language model's folder")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="of our side; what the machine is fast in")
    parser.add_argument("--deterministic", action=argparse.BooleanOptionalAction, default=True, help="on a GPU, ours")
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args()


def install_trl(folder: str) -> str:
    """The peer, in a folder of its own: its dependencies are those that are installed."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, TRL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{TRL} could not be installed: {(done.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr)
        sys.exit(SKIPPED)
    return folder


def run_side(side: str, seed: int, trl: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", side, "--seed", str(seed), "--updates", str(arguments.updates),
               "--trl", trl, "--model", arguments.model, "--threads", str(arguments.threads),
               "--device", arguments.device, "--deterministic" if arguments.deterministic else "--no-deterministic",
               *(["--dtype", arguments.dtype] if arguments.dtype else [])]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def summary(result: dict[str, Any]) -> str:
    parts = " ".join(f"{name} {seconds:.2f}s" for name, seconds in result.get("parts", {}).items())
    return (
        f"{result['episodes'] / result['seconds']:6.2f} episodes/s, {result['episodes'] / result['cpu']:6.2f} per CPU "
        f"second, {result['memory']:6.0f} MB above start-up, reward {result['reward']:.3f} {parts}"
    )


def compare(results: dict[str, list[dict[str, Any]]], updates: int) -> None:
    def mean(side: str, value: Any) -> float:
        return sum(value(result) for result in results[side]) / len(results[side])

    rate = {side: mean(side, lambda r: r["episodes"] / r["seconds"]) for side in SIDES}
    by_cpu = {side: mean(side, lambda r: r["episodes"] / r["cpu"]) for side in SIDES}
    memory = {side: mean(side, lambda r: r["memory"]) for side in SIDES}
    reward = {side: mean(side, lambda r: r["reward"]) for side in SIDES}
    print(f"{updates} updates of {BATCH} episodes, {len(results['ours'])} seeds, means:")
    print(f"  episodes/s      ours {rate['ours']:.2f}, TRL {rate['trl']:.2f}: {rate['ours'] / rate['trl']:.2f} ×")
    print(
        f"  by CPU time     ours {by_cpu['ours']:.2f}, TRL {by_cpu['trl']:.2f}: {by_cpu['ours'] / by_cpu['trl']:.2f} ×"
    )
    print(
        f"  memory (MB)     ours {memory['ours']:.0f}, TRL {memory['trl']:.0f}: {memory['ours'] / memory['trl']:.2f} ×"
    )
    print(f"  final reward    ours {reward['ours']:.3f}, TRL {reward['trl']:.3f}")
    share = mean("ours", lambda r: r["peak_share"])
    print(
        f"  training reaches {share:.0%} of the measured matrix peak ({mean('ours', lambda r: r['peak']):.0f} GFLOP/s)"
    )


def build(arguments: argparse.Namespace, dtype: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.model not in SHAPES:
        return AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype).to(arguments.device)
    torch.manual_seed(arguments.seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        **SHAPES[arguments.model],
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(arguments.device, dtype)


def prompt_ids(seed: int) -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(1000 + seed)
    lengths = torch.randint(16, 33, (PROMPTS,), generator=generator).tolist()
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def resident(device: str) -> float:
    """Peak memory so far, in MB: resident, or what a GPU's tensors took."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w3"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="w1", pad_token="w2", unk_token="w3")


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT))
    import torch

    from alignment.policy.online.actor_critic import frozen_copy
    from alignment.policy.ppo.trainer import PpoTrainer
    from alignment.precision import natural_precision
    from alignment.recipe.resources import Resources
    from alignment.recipe.stages.ppo import PpoStage
    from alignment.records import Message, Prompt, Sampling
    from alignment.rollouts.transformers_engine import TransformersEngine
    from alignment.training.setup import choose_kernels

    resources = Resources(device=arguments.device, deterministic=arguments.deterministic)
    choose_kernels(resources)
    before = resident(arguments.device)
    policy = build(arguments, getattr(torch, arguments.dtype or natural_precision(resources.device)))
    settings = PpoStage(
        kind="ppo", model="base", reward="rule", steps=arguments.updates, episodes=BATCH, epochs=EPOCHS,
        sampling=Sampling(temperature=0.7, max_new_tokens=NEW_TOKENS), learning_rate=LEARNING_RATE,
        critic_learning_rate=LEARNING_RATE, warmup=0.0, lora=None, missing_eos_penalty=0.0, checkpoint_every=10**6,
        normalise_scores=False, lam=0.95,  # as TRL's, whose final reward ours is compared with
    )  # fmt: skip
    asked = Message(role="user", content="-")
    trainer = PpoTrainer(
        settings,
        policy=policy,
        reference=frozen_copy(policy),
        engine=TransformersEngine(policy, tokenizer(), stop_ids={-1}),
        reward=lambda episodes: [sum(t < TARGET for t in e.completion.tokens) / NEW_TOKENS for e in episodes],
        prompts=[
            (Prompt(id=str(i), messages=(asked,)), tuple(ids)) for i, ids in enumerate(prompt_ids(arguments.seed))
        ],
        seed=arguments.seed,
    )
    started, cpu = time.perf_counter(), time.process_time()
    history = trainer.train().history
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    parts = {name: sum(step[f"seconds_{name}"] for step in history)
             for name in ("sampling", "scoring", "logprobs", "training")}  # fmt: skip
    body = sum(p.numel() for p in policy.parameters()) - policy.get_input_embeddings().weight.numel()
    peak = matrix_peak(policy.dtype, arguments.device)
    reached = 6 * body * trainer.state.tokens_trained / parts["training"] / 1e9
    return {
        "seconds": seconds, "cpu": cpu, "episodes": BATCH * arguments.updates,
        "memory": resident(arguments.device) - before,
        "reward": history[-1]["score"], "parts": parts, "peak": peak, "peak_share": reached / peak,
        "rewards": [step["score"] for step in history],
    }  # fmt: skip


def matrix_peak(dtype: Any, device: str) -> float:
    """GFLOP/s of a large matrix product, the best of five."""
    import torch

    left, right = (torch.randn(2048, 2048, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * 2048**3 / best / 1e9


def peer(arguments: argparse.Namespace) -> dict[str, Any]:
    sys.path.insert(0, arguments.trl)
    import torch
    from datasets import Dataset
    from torch import nn
    from transformers import AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    class Rule(nn.Module):
        """The rule in the shape of a reward model: at each token, the share of target tokens so far in the answer."""

        base_model_prefix = "backbone"

        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.score = Backbone(), nn.Identity()

    class Backbone(nn.Module):
        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            answer = input_ids.clone()
            answer[:, :-NEW_TOKENS] = VOCABULARY
            counts = (answer < TARGET).float().cumsum(1)[..., None] / NEW_TOKENS
            return argparse.Namespace(hidden_states=[counts])

    before = resident(arguments.device)
    policy, reference = build(arguments, torch.float32), build(arguments, torch.float32)
    value = AutoModelForSequenceClassification.from_config(policy.config, dtype=torch.float32)
    value.config.num_labels = 1
    value.score = nn.Linear(policy.config.hidden_size, 1, bias=False)
    value.base_model.load_state_dict(policy.base_model.state_dict())
    value.to(arguments.device)
    rewards: list[float] = []

    class Trainer(PPOTrainer):  # type: ignore[misc]
        def log(self, logs: dict[str, float], *rest: Any, **more: Any) -> None:
            if "objective/scores" in logs:
                rewards.append(float(logs["objective/scores"]))
            super().log(logs, *rest, **more)

    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder, per_device_train_batch_size=BATCH, gradient_accumulation_steps=1, num_mini_batches=1,
            num_ppo_epochs=EPOCHS, total_episodes=BATCH * arguments.updates, response_length=NEW_TOKENS,
            learning_rate=LEARNING_RATE, temperature=0.7, num_sample_generations=0, report_to=[], save_strategy="no",
            logging_steps=1, use_cpu=arguments.device == "cpu", seed=arguments.seed, disable_tqdm=True,
        )  # fmt: skip
        rows = [{"input_ids": ids} for ids in prompt_ids(arguments.seed)]
        trainer = Trainer(args=config, processing_class=tokenizer(), model=policy, ref_model=reference,
                          reward_model=Rule(), value_model=value, train_dataset=Dataset.from_list(rows),
                          eval_dataset=Dataset.from_list(rows[:BATCH]))  # fmt: skip
        started, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "episodes": BATCH * arguments.updates,
            "memory": resident(arguments.device) - before, "reward": rewards[-1], "rewards": rewards}  # fmt: skip


SIDES = {"ours": ours, "trl": peer}

if __name__ == "__main__":
    main()
