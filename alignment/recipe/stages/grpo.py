"""The settings of the stages that compare an answer with others to the same prompt: GRPO and RLOO.

One step draws ``per_prompt`` answers to each of ``episodes / per_prompt`` prompts, scores them, and passes over them
``epochs`` times in ``minibatches`` pieces, each an optimizer step: the words of the PPO stage, with its meanings.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from alignment.recipe.base import Count, Fraction, Lora, Name, NotNegative, Positive, refuse_dropout
from alignment.recipe.rewards import REWARD_READS, RewardList, unique_names
from alignment.recipe.stages.spec import StageSettings, StageSpec
from alignment.records import Sampling

GrpoLoss = Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"]


class GroupStage(StageSettings):
    """What GRPO and RLOO share."""

    model: Name
    """The policy to train: a stage, or `base`."""
    rewards: RewardList = Field(min_length=1)
    """Rewards, whose weighted sum is maximised."""
    steps: Count = 100
    """Steps, each of which draws `episodes` answers."""
    episodes: Count = 32
    """Answers in a step; a multiple of `per_prompt` and of `minibatches` × `batch_size`."""
    per_prompt: Annotated[int, Field(ge=2)] = 8
    """Answers to one prompt, the group size G."""
    epochs: Count = 1
    """Passes over a step's answers."""
    minibatches: Count = 1
    """Optimizer steps in a pass. Several workers make the same ones as one alone where `episodes` is a multiple of
    workers × `minibatches` × `per_prompt`."""
    batch_size: Count = 8
    """Answers in one forward and backward pass."""
    sampling: Sampling = Sampling(temperature=1.0, max_new_tokens=64)
    """How answers are drawn. top-k, top-p, min-p, penalties and stop strings must stay off."""
    max_prompt_length: Count = 512
    """Tokens above which a prompt is left out, and counted."""

    learning_rate: Positive
    """Peak learning rate."""
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
    lora: Lora | None = Lora()
    """The adapter to train. null: all weights."""
    beta: NotNegative
    """Coefficient of the KL divergence from the policy at the start. 0: no reference is held."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Lower clipping bound ε of the probability ratio. 0.2: Schulman et al. 2017."""
    clip_high: Positive = 0.2
    """Upper clipping bound ε of the probability ratio. 0.28 is "clip higher" (Yu et al. 2025, DAPO)."""
    workers: Count | None = None
    """Processes that share each batch. null: `resources.workers`."""
    missing_eos_penalty: NotNegative = 1.0
    """Subtracted from the reward of an answer that was cut off, in standard deviations of the rewards' weighted sum
    over all answers so far. 1, as in PPO: Huang et al. 2024 (the "EOS trick"), Stiennon et al. 2020. 0: none."""
    mask_truncated: bool = False
    """Leave answers that were cut off out of the loss (Yu et al. 2025, section 3.4)."""
    router_loss: NotNegative | None = None
    """Coefficient of the loss that has a mixture of experts use its experts alike (Fedus et al. 2022). 0: none. null:
    the one that the model's configuration names, if any."""

    @field_validator("lora")
    @classmethod
    def _no_dropout(cls, lora: Lora | None) -> Lora | None:
        return refuse_dropout(lora)

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

    def router_loss_used(self) -> float | None:
        """Coefficient of the routers' loss, where it is set."""
        return self.router_loss

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

    def entropy_weight(self) -> float:
        """Coefficient of an entropy bonus in the loss."""
        return 0.0


class GrpoStage(GroupStage):
    """Group relative policy optimisation (Shao et al. 2024, DeepSeekMath), with every loss that TRL offers.

    ``loss``: "grpo" the original, a mean over each answer's tokens; "dapo" a mean over all tokens (Yu et al. 2025);
    "dr_grpo" a sum over a constant (Liu et al. 2025); "bnpo" a mean over a minibatch's tokens; "cispo" clipped weights
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
    """Group relative policy optimisation."""
    learning_rate: Positive = 1e-5
    """Peak learning rate. 1e-5, for LoRA: ten times the 1e-6 of Shao et al. 2024 and of TRL."""
    beta: NotNegative = 0.0
    """Coefficient of the KL divergence from the policy at the start. 0.04 in Shao et al. 2024; later work, and TRL, use
    0."""
    loss: GrpoLoss = "dapo"
    """TRL's name of the loss. `dapo`: its default, a mean over all tokens of a batch."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """The standard deviation that advantages are divided by. `none`: Liu et al. 2025 (Dr. GRPO)."""
    importance_level: Literal["token", "sequence"] = "token"
    """Probability ratio of each token, or of the whole answer (GSPO, Zheng et al. 2025)."""
    aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Order of summing several rewards and normalising them. GDPO normalises each first."""
    delta: Positive | None = None
    """Upper bound of the ratio where the advantage is negative (INTELLECT-2). null: none."""
    top_entropy: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the tokens that are trained, those with the highest entropy among the `batch_size` answers of a pass."""
    entropy_coefficient: NotNegative = 0.0
    """Coefficient of an entropy bonus."""
    sapo_temperatures: tuple[Positive, Positive] = (1.0, 1.05)
    """Temperatures of SAPO's gate where the advantage is positive, and where negative (Gao et al. 2025)."""

    def entropy_weight(self) -> float:
        """Coefficient of an entropy bonus in the loss."""
        return self.entropy_coefficient


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
    """REINFORCE leave-one-out."""
    learning_rate: Positive = 1e-5
    """Peak learning rate. 1e-5, for LoRA: ten times TRL's 1e-6."""
    beta: NotNegative = 0.05
    """Coefficient of the KL divergence that is subtracted from an answer's reward, as in Ahmadian et al. 2024."""
    normalize_advantages: bool = False
    """Divide advantages by their standard deviation."""
    clip_rewards: tuple[float, float] | None = None
    """Bounds that rewards are clipped to. null: none."""
