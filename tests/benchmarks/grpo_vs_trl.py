"""Our GRPO stage's trainer against TRL's GRPOTrainer with its defaults: completions per second, and the reward reached.

Run it with nothing else on the machine: ``python tests/benchmarks/grpo_vs_trl.py``. Each run is a process of its own,
the two sides in turn. Both train all weights of the same 7M-parameter model from the same weights, in the precision
that the machine is fast in (TRL's default is bfloat16 autocast), on the same prompts with the same reward, batch,
group, new tokens and learning rate, with the same loss (DAPO's, TRL's default). Ours samples with our engine, and
computes what the answers of a group share once.

The reward is a rule, so it is the true one: the share of an answer's tokens that are of the first quarter of the
vocabulary. A random policy gets 0.25. CPU seconds are counted beside the clock, because they hardly depend on what else
the machine does.
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

ROOT = Path(__file__).parents[2]
BATCH, GROUP, NEW_TOKENS, PROMPTS, LEARNING_RATE, VOCABULARY = 32, 8, 48, 256, 3e-4, 4096
TARGET = VOCABULARY // 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=["ours", "trl"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=8, help=f"steps of {BATCH} completions")
    parser.add_argument("--model", choices=list(SHAPES), default="7m", help="the shape of the model")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(train(arguments)))
        return
    results: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
    for seed in range(arguments.seeds):
        for side, found in results.items():
            command = [
                sys.executable, __file__, "--side", side, "--seed", str(seed), "--updates", str(arguments.updates),
                "--model", arguments.model, "--device", arguments.device,
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
            if done.returncode:
                sys.exit(f"{side} failed:\n{done.stderr[-4000:]}")
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"seed {seed} {side:4} {summary(found[-1])}", flush=True)
    for name, of in (("completions/s", "seconds"), ("completions per CPU second", "cpu")):
        ours, trl = (sum(r["completions"] / r[of] for r in results[side]) / arguments.seeds for side in results)
        print(f"  {name:27} ours {ours:.2f}, TRL {trl:.2f}: {ours / trl:.2f} ×")
    ours, trl = (sum(r["reward"] for r in results[side]) / arguments.seeds for side in results)
    print(f"  {'reward of the last quarter':27} ours {ours:.3f}, TRL {trl:.3f}")


def summary(result: dict[str, float]) -> str:
    rate, by_cpu = (result["completions"] / result[name] for name in ("seconds", "cpu"))
    return f"{rate:6.2f} completions/s, {by_cpu:6.2f} per CPU second, reward {result['reward']:.3f}"


def train(arguments: argparse.Namespace) -> dict[str, float]:
    """One side: seconds of the second half of the steps, and the mean reward of the last quarter."""
    sys.path.insert(0, str(ROOT))
    from transformers import TrainerCallback
    from trl import GRPOConfig

    from alignment.precision import natural_precision
    from alignment.recipe.resources import Resources
    from alignment.training.setup import choose_kernels

    resources = Resources(device=arguments.device)
    if arguments.side == "ours":
        choose_kernels(resources)
    bf16 = natural_precision(resources.device) == "bfloat16"
    marks: list[tuple[float, float]] = []
    rewards: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
            if "reward" in logs:
                used = resource.getrusage(resource.RUSAGE_SELF)
                marks.append((time.perf_counter(), used.ru_utime + used.ru_stime))
                rewards.append(logs["reward"])

    # TRL's default is to compute activations twice, which the stage does only where it is asked to.
    options = {"gradient_checkpointing": False} if arguments.side == "ours" else {}
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=BATCH, num_generations=GROUP, learning_rate=LEARNING_RATE,
            max_completion_length=NEW_TOKENS, max_steps=arguments.updates, logging_steps=1, save_strategy="no",
            report_to=[], seed=arguments.seed, bf16=bf16, use_cpu=arguments.device == "cpu", disable_tqdm=True,
            **options,
        )  # fmt: skip
        trainer = (Ours if arguments.side == "ours" else peer)(config, arguments, Clock())
        trainer.train()
    half = len(marks) // 2
    (start, cpu), (end, cpu_end) = marks[half - 1], marks[-1]
    last = rewards[-max(1, len(rewards) // 4) :]
    return {
        "completions": float(BATCH * (len(marks) - half)),
        "seconds": end - start,
        "cpu": cpu_end - cpu,
        "reward": sum(last) / len(last),
    }


def parts(arguments: argparse.Namespace) -> tuple[Any, Any, list[str]]:
    """The model, its tokenizer (one word a token, and no end) and the prompts."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    torch.manual_seed(arguments.seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        **SHAPES[arguments.model],
    )  # fmt: skip
    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="w1", pad_token="w2", unk_token="w3")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %} w1{% else %} {% endif %}{% endfor %}"
    )
    generator = torch.Generator().manual_seed(1000 + arguments.seed)
    lengths = torch.randint(16, 33, (PROMPTS,), generator=generator).tolist()
    prompts = [
        " ".join(f"w{token}" for token in torch.randint(4, VOCABULARY, (length,), generator=generator).tolist())
        for length in lengths
    ]
    return AutoModelForCausalLM.from_config(config).to(arguments.device), tokenizer, prompts


def share(tokens: Any) -> float:
    return sum(token < TARGET for token in tokens) / len(tokens)


def peer(config: Any, arguments: argparse.Namespace, clock: Any) -> Any:
    from datasets import Dataset
    from trl import GRPOTrainer

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [share(tokens) for tokens in completion_ids]

    model, tokenizer, prompts = parts(arguments)
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts])
    return GRPOTrainer(
        model=model, reward_funcs=reward, args=config, train_dataset=rows, processing_class=tokenizer, callbacks=[clock]
    )


class Ours:
    """The stage's trainer, with the clock of TRL's."""

    def __init__(self, config: Any, arguments: argparse.Namespace, clock: Any) -> None:
        import torch

        from alignment.policy.grpo.trainer import GroupTrainer
        from alignment.policy.online.episode_reward import EpisodeReward
        from alignment.policy.online.trainer import Surroundings
        from alignment.recipe.stages.grpo import GrpoStage
        from alignment.records import Message, Prompt
        from alignment.reward.protocol import Rewards
        from alignment.rollouts.transformers_engine import TransformersEngine

        class Share(EpisodeReward):
            """Of the tokens that were drawn, which a reward of texts does not see."""

            def __call__(self, episodes: Any) -> list[float]:
                self.scores = {"share": [share(episode.completion.tokens) for episode in episodes]}
                self.means = {"reward.share": sum(self.scores["share"]) / len(episodes)}
                return self.scores["share"]

        model, tokenizer, texts = parts(arguments)
        if config.bf16:
            model = model.to(torch.bfloat16)
        rendered = [
            (Prompt(id=text, messages=(Message(role="user", content=text),)), tuple(tokenizer(text)["input_ids"]))
            for text in texts
        ]
        settings = GrpoStage.model_validate({
            "kind": "grpo", "model": "base", "rewards": [{"kind": "length", "at_most": 1}], "lora": None,
            "steps": arguments.updates, "episodes": BATCH, "per_prompt": GROUP, "batch_size": BATCH, "warmup": 0.0,
            "learning_rate": LEARNING_RATE, "sampling": {"max_new_tokens": NEW_TOKENS}, "missing_eos_penalty": 0.0,
        })  # fmt: skip
        self.clock = clock
        self.trainer = GroupTrainer(
            settings, policy=model, reference=None, engine=TransformersEngine(model, tokenizer, stop_ids={1}),
            reward=Share(Rewards([]), per_prompt=GROUP), prompts=rendered, around=Surroundings(arguments.seed),
        )  # fmt: skip

    def train(self) -> None:
        self.trainer.train(on_step=lambda _step, metrics, _experience: self.clock.on_log(logs=metrics))


if __name__ == "__main__":
    main()
