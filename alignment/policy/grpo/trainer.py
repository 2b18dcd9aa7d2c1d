"""What TRL's GRPO and RLOO trainers get from us: our rollouts, our rewards, our names, and an order that resumes.

TRL keeps the mathematics. Its prompts are drawn by a sampler that starts again after a restart in a later pass over the
data, so here one pass is the whole run: the prompts of all steps stand in a row, in an order that depends on the seed
alone, and TRL reads them from where it stopped.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather
from trl import GRPOTrainer, RLOOTrainer
from trl.trainer.utils import split_tensor_dict

from alignment.chat import render_prompt
from alignment.distributed.fsdp import gathered
from alignment.models.cpu_attention import NAME as SDPA_FLOAT32
from alignment.policy.ppo.score_scale import ScoreScale
from alignment.records import Message, Prompt, Sampling
from alignment.reward.protocol import RewardInput, Rewards
from alignment.rollouts.engine import Completion, Engine
from alignment.rollouts.seeds import derived_seed
from alignment.training.invariants import check_first_ratios

NAMES = {  # TRL's names → ours; what stands in neither is left out
    "scored": "reward",
    "scored_std": "reward_deviation",
    "scored_alike": "groups_without_spread",
    "kl": "kl_per_token",
    "entropy": "entropy",
    "completions/mean_length": "length",
    "completions/max_length": "length_max",
    "clip_ratio/region_mean": "clip_fraction",
    "clip_ratio/low_mean": "clip_fraction_low",
    "clip_ratio/high_mean": "clip_fraction_high",
    "cispo_clip_ratio": "clip_fraction_high",
    "vespo/phi_seq_mean": "vespo_weight",
}

MISSING_END = "missing_end"  # the metric's name of what answers lost for their missing ends, in deviations


@dataclass(slots=True)
class Rollouts:
    """What the trainers below sample with and score by. ``drawn``, ``answers`` and ``scores`` are the newest step's."""

    engine: Engine
    policy: Any
    base: Any  # the policy without its adapter's wrapper
    tokenizer: Any
    sampling: Sampling
    rewards: Rewards
    prompts: Sequence[Prompt]
    seed: int
    updates_per_step: int  # optimizer steps on one step's answers
    epochs: int
    missing_eos_penalty: float = 0.0  # in deviations of the weighted sum of the rewards
    scale: ScoreScale = field(default_factory=ScoreScale)
    dtype: str = "float32"  # that the policy computes in
    per_prompt: int = 1  # answers, which stand together
    places: Sequence[
        int
    ] = ()  # among a step's prompts, of those that the ranks ask in their order; as they are if empty
    rank: int = 0  # of this worker: each samples and scores as many of a step's answers, in the order of the ranks
    drawn: list[Completion] = field(default_factory=list)
    answers: list[RewardInput] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    tokens: int = 0  # of prompts and answers that passed through training since this process began

    def sample(self, prompts: Sequence[Sequence[int]], optimizer_step: int) -> list[list[int]]:
        """The tokens of one answer to each prompt; equal prompts stand together and are prefilled once."""
        step = optimizer_step // self.updates_per_step
        first = self.rank * len(prompts)
        seeds = [derived_seed(self.seed, "answer", step, self.place(first + index)) for index in range(len(prompts))]
        with _usual_attention(self.base), gathered(self.policy), _sampled_in_bfloat16(self.base, self.dtype):
            groups = self.engine.generate(prompts, sampling=self.sampling, seeds=seeds)
        self.drawn = [completion for (completion,) in groups]
        return [list(completion.tokens) for completion in self.drawn]

    def place(self, index: int) -> int:
        """The place among a step's answers of that which is drawn as its ``index``-th."""
        prompt, answer = divmod(index, self.per_prompt)
        return (self.places[prompt] if self.places else prompt) * self.per_prompt + answer

    def score(self, indices: Sequence[int]) -> torch.Tensor:
        """(answers, components) float32, without weights: of the answers that were drawn last, to these prompts.

        Raises StageError where a reward fails at its task.
        """
        self.answers = [
            RewardInput(self.prompts[index], one.text, len(one.tokens), one.finished)
            for index, one in zip(indices, self.drawn, strict=True)
        ]
        lengths = {index: len(render_prompt(self.tokenizer, self.prompts[index].messages)) for index in set(indices)}
        passed = sum(lengths[index] + len(one.tokens) for index, one in zip(indices, self.drawn, strict=True))
        self.tokens += self.epochs * passed
        self.scores = self.rewards.score(self.answers)
        return torch.tensor([self.scores[name] for name in self.rewards.names], dtype=torch.float32).T

    def totals(self, scores: torch.Tensor) -> torch.Tensor:
        """The weighted sums (N,) of scores (N, components)."""
        weights = torch.tensor([component.weight for component in self.rewards.components], device=scores.device)
        return (scores * weights).sum(dim=1)

    def missing_ends(self, scores: torch.Tensor, cut: torch.Tensor) -> torch.Tensor:
        """What an answer loses for a missing end, in deviations of the scores as in PPO: (N,) from all workers' scores
        (N, components), which are taken into the running scale first, and a mask ``cut`` (N,)."""
        self.scale.update(self.totals(scores))
        return -self.scale.deviation * cut.float()


@contextmanager
def _usual_attention(model: Any) -> Iterator[None]:
    """PyTorch's own attention for as long as the context lasts: what training widens for backward is slower."""
    widened = model.config._attn_implementation == SDPA_FLOAT32
    if widened:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if widened:
            model.set_attn_implementation(SDPA_FLOAT32)


@contextmanager
def _sampled_in_bfloat16(model: Any, dtype: str) -> Iterator[None]:
    """A policy whose weights are float32 masters samples as it is trained, and will be used: in bfloat16."""
    narrow = dtype == "bfloat16" and model.dtype == torch.float32
    with torch.autocast(model.device.type, torch.bfloat16, enabled=narrow):
        yield


class OurRollouts:
    """The part that both trainers share; it stands before TRL's class."""

    rollouts: Rollouts
    _logprobs: torch.Tensor  # (B, T) of the newest pass
    _entropies: torch.Tensor | None  # (B, T) likewise, with their gradient where they have one

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """As TRL's, without its shuffle of a step's answers.

        So each batch of the loss is one in which log-probabilities of the reference and of the policy that sampled were
        computed: rounding is the same on both sides, and the first ratios are 1. Answers to one prompt stay together,
        which is computed once for all of them.
        """
        per_generation = self.args.steps_per_generation  # type: ignore[attr-defined]
        step = self._step  # type: ignore[attr-defined]
        if step % (per_generation * self.num_iterations) == 0 or self._buffered_inputs is None:  # type: ignore[has-type, attr-defined]
            scored = self._generate_and_score_completions(generation_batch)  # type: ignore[attr-defined]
            self._buffered_inputs = split_tensor_dict(scored, per_generation)
            self._weigh(self._buffered_inputs)
        return self._buffered_inputs[step % per_generation]

    def _weigh(self, batches: Sequence[dict[str, Any]]) -> None:
        """Says with each batch what its mean over tokens weighs in that over its minibatch, all workers' parts."""
        own = torch.stack([batch["completion_mask"].sum() for batch in batches]).float()
        everywhere = gather(own).view(-1, len(batches))
        minibatch: int = self.args.gradient_accumulation_steps  # type: ignore[attr-defined]
        tokens = everywhere.mean(0).view(-1, minibatch).mean(1).clamp(min=1 / len(everywhere))
        for batch, weight in zip(batches, own / tokens.repeat_interleave(minibatch), strict=True):
            batch["token_weight"] = weight

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        with self.autocast_smart_context_manager():  # type: ignore[attr-defined]  # where sharded, accelerate's is off
            outputs = super()._get_per_token_logps_and_entropies(*args, **kwargs)  # type: ignore[misc]
        self._logprobs, self._entropies = outputs[0].detach(), outputs[1]
        return outputs

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        loss = super()._compute_loss(model, inputs)  # type: ignore[misc]
        if self.state.global_step == 0:  # type: ignore[attr-defined]
            self._check_first_pass(inputs)
        return loss

    def _check_first_pass(self, inputs: Mapping[str, Any]) -> None:
        mask = inputs["completion_mask"].bool()
        sampled = inputs.get("old_per_token_logps")
        if sampled is not None:
            check_first_ratios(self._logprobs, sampled, mask, of="itself, as it sampled")
        elif "old_logps" in inputs:  # RLOO's, of whole answers
            whole, everything = (self._logprobs * mask).sum(1, keepdim=True), mask.any(1, keepdim=True)
            check_first_ratios(whole, inputs["old_logps"][:, None], everything, of="itself, as it sampled")
        reference = inputs.get("ref_per_token_logps")
        if reference is not None:
            check_first_ratios(self._logprobs, reference, mask, of="its reference")
        metrics: Any = self._metrics
        if "old_logps" in inputs and (kl := metrics["train"].get("kl")):
            first = torch.tensor([kl[0]])
            check_first_ratios(first, torch.zeros(1), torch.ones(1, dtype=torch.bool), of="its reference, a token")

    def _tokenize_prompts(self, prompts: list[list[dict[str, str]]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        messages = ([Message.model_validate(message) for message in prompt] for prompt in prompts)
        return [render_prompt(self.rollouts.tokenizer, prompt) for prompt in messages], None, {}

    def _calculate_rewards(self, inputs: Any, *_: Any) -> torch.Tensor:
        rollouts, device = self.rollouts, self.accelerator.device  # type: ignore[attr-defined]
        own = rollouts.score([row["index"] for row in inputs])
        scores: torch.Tensor = gather(own.to(device))
        totals = rollouts.totals(scores)
        metrics: Any = self._metrics["train"]
        metrics["scored"].append(float(totals.mean()))
        metrics["scored_std"].append(float(totals.std()))
        spread = totals.view(-1, self.num_generations).std(dim=1)  # type: ignore[attr-defined]
        metrics["scored_alike"].append(float(torch.isclose(spread, torch.zeros_like(spread)).float().mean()))
        if not rollouts.missing_eos_penalty:
            return scores
        cut = gather(torch.tensor([not answer.finished for answer in rollouts.answers], device=device))
        return torch.cat([scores, rollouts.missing_ends(scores, cut)[:, None]], dim=1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        metrics = self._metrics["train"]  # type: ignore[has-type]
        named = dict(our_metrics(metrics))
        if named:
            tokens = torch.tensor([self.rollouts.tokens], device=self.accelerator.device)  # type: ignore[attr-defined]
            named["num_tokens"] = [float(gather(tokens).sum())]
        self._metrics = {"train": defaultdict(list, named), "eval": defaultdict(list)}
        super().log(logs, start_time)  # type: ignore[misc]


class OurGRPOTrainer(OurRollouts, GRPOTrainer):  # type: ignore[misc]  # TRL is untyped
    """GRPO with our rollouts and rewards, and means over tokens that do not depend on how a minibatch is split."""

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        loss = super()._compute_loss(model, inputs)
        weight = inputs["token_weight"]
        if self.loss_type == "bnpo":  # TRL's is the mean over a batch's own tokens; the entropy bonus is another
            loss = loss * weight
        elif self._entropy_bonus_enabled and self.top_entropy_quantile == 1:
            mask = inputs["completion_mask"]
            mean = (self._entropies * mask).sum() / mask.sum().clamp(min=1) / self.current_gradient_accumulation_steps
            loss = loss + (1 - weight) * self.entropy_coef * mean
        self._entropies = None  # with its graph
        return loss

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        return self.rollouts.sample(prompt_ids, self.state.global_step), None


class OurRLOOTrainer(OurRollouts, RLOOTrainer):  # type: ignore[misc]
    """RLOO with our rollouts and rewards."""

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> list[list[int]]:
        return self.rollouts.sample(prompt_ids, self.state.global_step)


def our_metrics(metrics: Mapping[str, list[float]]) -> Iterator[tuple[str, list[float]]]:
    """TRL's metrics under our names.

    ``reward``, its deviation and the groups without spread are of what the rewards gave, without what answers lost for
    their missing ends; ``kl`` is nats per answer, and ``eos_rate`` the share that ended by itself.
    """
    for name, values in metrics.items():
        if name in NAMES:
            yield NAMES[name], values
        elif name.startswith("rewards/") and name.endswith("/mean"):
            yield f"reward.{name.split('/')[1]}", values
    if "completions/clipped_ratio" in metrics:
        yield "eos_rate", [1 - value for value in metrics["completions/clipped_ratio"]]
    if metrics.get("kl") and metrics.get("completions/mean_length"):
        kl, length = (metrics[name] for name in ("kl", "completions/mean_length"))
        yield "kl", [sum(kl) / len(kl) * sum(length) / len(length)]


def reward_weights(rollouts: Rollouts) -> dict[str, float]:
    """By name, the weights of what ``_calculate_rewards`` above gives: the rewards, and what a missing end costs."""
    weights = {component.name: component.weight for component in rollouts.rewards.components}
    return weights | ({MISSING_END: rollouts.missing_eos_penalty} if rollouts.missing_eos_penalty else {})


def reward_stub(name: str) -> Any:
    """TRL wants a function for each metric; ``_calculate_rewards`` above scores with all of them at once instead."""

    def stub(**_: Any) -> list[float]:
        raise NotImplementedError(name)

    stub.__name__ = name
    return stub
