"""What the stages share that learn from their policy's own answers: PPO, GRPO and RLOO."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from alignment.recipe.base import Count, Fraction, Lora, Name, NotNegative, Positive, Settings, refuse_dropout
from alignment.recipe.rewards.components import RewardList
from alignment.recipe.stages.adapters import AdaptedStage
from alignment.records import Sampling

USUAL_CAP = 2.0  # of importance weights (Yao et al. 2025)


class Difficulty(Settings):
    """A curriculum by measured pass rate: prompts that the policy nearly always answers right, or nearly never, have
    little to teach and are asked less often. A prompt's pass rate is that of its newest group; one that was never asked
    has none, and is asked."""

    passes_at: Annotated[float, Field(allow_inf_nan=False)]
    """Sum of the rewards, as they are weighted, from which on an answer passes."""
    low: Fraction = 0.1
    """Share of a group's answers that pass below which a prompt is too hard."""
    high: Fraction = 0.9
    """Share of a group's answers that pass above which a prompt is too easy."""
    chance: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Probability with which such a prompt is asked all the same when its turn comes, and measured anew."""

    @model_validator(mode="after")
    def _a_band(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"no pass rate is between low={self.low:g} and high={self.high:g}")
        return self


class OnlineStage(AdaptedStage):
    """One step draws ``episodes`` answers, ``per_prompt`` to each of its prompts, scores them, and passes over them
    ``epochs`` times in ``minibatches`` pieces, each an optimizer step."""

    model: Name
    """The policy to train: a stage, or `base`."""
    rewards: RewardList = ()
    """Rewards, whose weighted sum is maximised."""
    steps: Count = 100
    """Steps, each of which draws `episodes` answers."""
    episodes: Count = 32
    """Answers in a step; a multiple of `per_prompt` and of `minibatches`."""
    per_prompt: Count = 1
    """Answers to one prompt."""
    epochs: Count = 1
    """Passes over a step's answers."""
    minibatches: Count = 1
    """Optimizer steps in a pass."""
    batch_size: Count = 8
    """Answers in one forward and backward pass. It bounds memory and changes nothing else."""
    sampling: Sampling = Sampling(temperature=1.0, max_new_tokens=64)
    """How answers are drawn. top-k, top-p, min-p and the repetition penalty must stay off."""
    max_prompt_length: Count = 512
    """Tokens above which a prompt is left out, and counted."""

    learning_rate: Positive
    """Peak learning rate of the policy."""
    warmup: Fraction = 0.05
    """Share of the optimizer steps in which the learning rate rises linearly."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after the warm-up."""
    weight_decay: NotNegative = 0.0
    """AdamW's decoupled weight decay (Loshchilov and Hutter 2019)."""
    max_grad_norm: Positive = 1.0
    """Norm at which gradients are clipped."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    checkpoint_every: Count = 10
    """Steps between two checkpoints."""
    snapshot_every: Count | None = None
    """Steps between two snapshots of the policy, which are kept. null: only the end is."""

    importance_cap: Positive | None = None
    """Cap C of importance weights, which make up for answers that another engine, or older weights, drew. 2.0: Yao et
    al. 2025. null: 2.0 where a vLLM server draws, and no weights elsewhere."""
    importance: Literal["truncate", "mask", "off"] = "truncate"
    """What becomes of importance weights beyond the cap: they are truncated to it (TIS, Yao et al. 2025), or what they
    belong to is left out where they are above C or below 1 / C (MIS, IcePop). `off`: there are no weights, and
    `max_sampling_gap` alone stands between a run and another engine's answers."""
    importance_by: Literal["token", "sequence"] = "token"
    """Whether each token has its importance weight, of less variance, or an answer one for all of its tokens, the
    product of theirs, of no bias."""
    max_sampling_gap: Positive | None = None
    """Mean distance, in nats per token, between the log-probabilities with which answers were drawn and those of the
    policy in training above which the run stops; from half of it on there is an alarm. null: 0.01 in float32, 0.1 in
    bfloat16 and float16, 0.1 where importance weights make up for another engine, and 0.5 where answers are of older
    weights (`max_staleness`)."""
    workers: Count | None = None
    """Processes that share each pass over a step's answers. null: `resources.workers`."""
    rollout_workers: Annotated[int, Field(ge=0)] = 0
    """Processes apart that draw the answers. 0: the workers themselves do."""
    max_staleness: Annotated[int, Field(ge=0, le=4)] = 0
    """Steps that the weights which drew an answer may be behind. Above 0 the rollout workers draw the answers of so
    many steps ahead while a step trains (Noukhovitch et al. 2024); ratios are clipped about the policy that the step
    begins with, and importance weights lead from the one that drew to it (the decoupled objective, Fu et al. 2025,
    AReaL); staler answers are refused."""

    @field_validator("lora")
    @classmethod
    def _no_dropout(cls, lora: Lora | None) -> Lora | None:
        return refuse_dropout(lora)

    @model_validator(mode="after")
    def _steps_fit_together(self) -> Self:
        for name in ("per_prompt", "minibatches"):
            if self.episodes % getattr(self, name):
                raise ValueError(f"episodes={self.episodes} is not a multiple of {name}={getattr(self, name)}")
        sampling = self.sampling
        if sampling.temperature == 0 or sampling.top_k or sampling.top_p < 1 or sampling.min_p:
            raise ValueError("it samples from the whole distribution: a temperature above 0, no top_k, top_p or min_p")
        if sampling.repetition_penalty != 1.0:
            raise ValueError("it samples from the model's own distribution: no repetition_penalty")
        if self.importance == "off" and self.importance_cap is not None:
            raise ValueError(f"importance_cap={self.importance_cap:g} bounds weights that importance=off leaves out")
        if self.max_staleness and not (self.rollout_workers and self.importance_cap):
            raise ValueError("max_staleness above 0 needs rollout_workers that draw ahead, and an importance_cap (2.0)")
        return self

    def weights_cap(self, *, other_engine: bool) -> float | None:
        """The cap of importance weights, given whether another engine than ours draws; None: there are no weights."""
        if self.importance == "off":
            return None
        return self.importance_cap or (USUAL_CAP if other_engine else None)

    def rewards_used(self) -> RewardList:
        """Its reward functions."""
        return self.rewards

    def snapshot_steps(self) -> int | None:
        """Optimizer steps between two snapshots of the policy."""
        return self.snapshot_every

    def rollout_processes(self) -> int:
        """Processes apart from its workers that draw its answers."""
        return self.rollout_workers

    def sampling_used(self) -> Sampling | None:
        """How it draws its answers."""
        return self.sampling

    def longest_prompt(self) -> int | None:
        """Tokens above which a prompt is left out."""
        return self.max_prompt_length

    def answers_per_prompt(self) -> int | None:
        """Answers that it draws to each prompt."""
        return self.per_prompt

    def steps_planned(self) -> int | None:
        """Steps that it takes."""
        return self.steps
