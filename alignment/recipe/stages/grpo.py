"""The settings of the stages that compare an answer with others to the same prompt: GRPO and RLOO.

One step draws ``per_prompt`` answers to each of ``episodes / per_prompt`` prompts, scores them, and passes over them
``epochs`` times in ``minibatches`` pieces, each an optimizer step: the words of the PPO stage, with its meanings.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from alignment.recipe.base import Count, Fraction, Lora, Name, NotNegative, Positive
from alignment.recipe.rewards import REWARD_READS, RewardList, unique_names
from alignment.recipe.stages.spec import StageSettings, StageSpec
from alignment.records import Sampling

GrpoLoss = Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"]


class GroupStage(StageSettings):
    """What GRPO and RLOO share."""

    model: Name
    rewards: RewardList = Field(min_length=1)
    steps: Count = 100
    episodes: Count = 32  # answers per step
    per_prompt: Annotated[int, Field(ge=2)] = 8  # answers to one prompt, G; divides `episodes`
    epochs: Count = 1
    minibatches: Count = 1
    batch_size: Count = 8  # answers in one forward and backward pass; divides `episodes / minibatches`
    sampling: Sampling = Sampling(temperature=1.0, max_new_tokens=64)  # top-k, top-p, min-p and penalties stay off
    max_prompt_length: Count = 512  # tokens; longer prompts are left out, and counted

    learning_rate: Positive
    warmup: Fraction = 0.05  # share of the optimizer steps
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: NotNegative = 0.0
    max_grad_norm: Positive = 1.0
    gradient_checkpointing: bool = False
    checkpoint_every: Count = 10  # steps
    snapshot_every: Count | None = None  # steps: the policy is kept as it is then; None: only at the end
    lora: Lora | None = Lora()
    beta: NotNegative  # coefficient of the KL to the reference, which is what the policy started from; 0: none is kept
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    clip_high: Positive = 0.2  # 0.28 is "clip higher" (Yu et al. 2025, DAPO)
    workers: Count | None = None  # None: as many as `resources.workers`; they share each batch
    mask_truncated: bool = False  # leave answers that were cut off out of the loss (Yu et al. 2025, section 3.4)

    @field_validator("rewards")
    @classmethod
    def _names(cls, rewards: RewardList) -> RewardList:
        return unique_names(rewards)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.episodes % self.per_prompt:
            raise ValueError(f"episodes={self.episodes} is not a multiple of per_prompt={self.per_prompt}")
        if self.episodes % (self.minibatches * self.batch_size):
            raise ValueError(
                f"episodes={self.episodes} is not a multiple of minibatches × batch_size="
                f"{self.minibatches * self.batch_size}"
            )
        sampling = self.sampling
        if sampling.temperature == 0 or sampling.top_k or sampling.top_p < 1 or sampling.min_p:
            raise ValueError("it samples from the whole distribution: a temperature above 0, no top_k, top_p or min_p")
        if sampling.repetition_penalty != 1.0 or sampling.stop:
            raise ValueError("it samples from the model's own distribution: no repetition_penalty, no stop strings")
        return self

    def rewards_used(self) -> RewardList:
        """Its reward functions."""
        return self.rewards

    def snapshot_steps(self) -> int | None:
        """Optimizer steps between two snapshots of the policy."""
        return self.snapshot_every

    def sampling_used(self) -> Sampling:
        """How it draws its answers."""
        return self.sampling

    def longest_prompt(self) -> int:
        """Tokens above which a prompt is left out."""
        return self.max_prompt_length

    def even_batch(self) -> tuple[int, int]:
        """The batch that workers share evenly."""
        return self.batch_size, 1

    def answers_per_prompt(self) -> int:
        """Answers that it draws to each prompt."""
        return self.per_prompt

    def steps_planned(self) -> int:
        """Steps that it takes."""
        return self.steps


class GrpoStage(GroupStage):
    """Group relative policy optimisation (Shao et al. 2024, DeepSeekMath), with every loss that TRL offers.

    ``loss``: "grpo" the original, a mean over each answer's tokens; "dapo" a mean over all tokens (Yu et al. 2025);
    "dr_grpo" a sum over a constant (Liu et al. 2025); "bnpo" a mean over a batch's tokens; "cispo" clipped weights
    (MiniMax 2025); "sapo" a soft gate (Gao et al. 2025); "luspo" and "vespo" at the level of the sequence. GSPO
    (Zheng et al. 2025) is ``loss: grpo`` with ``importance_level: sequence``.
    """

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.grpo",
        makes=("policy",),
        reads={"model": "policy", **REWARD_READS},
        data=("prompts",),
        sharing="batches",
        samples=True,
        headline=("reward",),
    )
    kind: Literal["grpo"]
    learning_rate: Positive = 1e-5  # LoRA: ten times the 1e-6 of Shao et al. 2024 and of TRL
    beta: NotNegative = 0.0  # 0.04 in Shao et al. 2024; later work, and TRL, leave it out
    loss: GrpoLoss = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = (
        "group"  # by what deviation; "none" in Liu et al. 2025 (Dr. GRPO)
    )
    importance_level: Literal["token", "sequence"] = "token"
    aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"  # GDPO: the latter
    delta: Positive | None = None  # upper bound of the ratio where the advantage is negative (INTELLECT-2)
    top_entropy: Annotated[float, Field(gt=0, le=1)] = 1.0  # train on this share of tokens, the least certain ones
    entropy_coefficient: NotNegative = 0.0
    sapo_temperatures: tuple[Positive, Positive] = (1.0, 1.05)  # where the advantage is positive, and where negative


class RlooStage(GroupStage):
    """REINFORCE leave-one-out (Kool et al. 2019; Ahmadian et al. 2024): the baseline is the group's other answers."""

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.grpo",
        makes=("policy",),
        reads={"model": "policy", **REWARD_READS},
        data=("prompts",),
        sharing="batches",
        samples=True,
        headline=("reward",),
    )
    kind: Literal["rloo"]
    learning_rate: Positive = 1e-5  # LoRA: ten times TRL's 1e-6
    beta: NotNegative = 0.05  # taken off the reward, per answer, as in Ahmadian et al. 2024
    normalize_advantages: bool = False
    clip_rewards: tuple[float, float] | None = None
