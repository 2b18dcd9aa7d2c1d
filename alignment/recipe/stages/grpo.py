"""The settings of the stages that compare an answer with others to the same prompt: GRPO and RLOO.

One step draws ``per_prompt`` answers to each of ``episodes / per_prompt`` prompts, scores them, and passes over them
``epochs`` times in ``minibatches`` pieces, each an optimizer step: the words of the PPO stage, with its meanings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from alignment.recipe.base import NotNegative, Positive
from alignment.recipe.rewards.components import REWARD_READS, RewardList, unique_names
from alignment.recipe.stages.environment import AnyEnvironment, check_environment
from alignment.recipe.stages.online import Difficulty, OnlineStage
from alignment.recipe.stages.spec import StageSpec

GrpoLoss = Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo", "sapo", "luspo", "vespo"]
ImportanceLevel = Literal["token", "sequence"]
WIDEST_SEQUENCE = 0.05  # the ratio of an answer is a geometric mean over its tokens: it moves by thousandths


@dataclass(frozen=True, slots=True)
class LossDefaults:
    """A loss's own settings.

    Attributes:
        clip_low, clip_high: its range, as far below and above 1; None where it does not clip there. CISPO's upper
            bound is that of the weight itself.
        level: what its probability ratio is of.
        two_sided: whether an upper bound where the advantage is negative (``delta``) means something for it.
    """

    clip_low: float | None = 0.2
    clip_high: float | None = 0.2
    level: ImportanceLevel = "token"
    two_sided: bool = True


# Each with the clipping range that its own paper gives: they are of no common scale.
LOSSES: Mapping[GrpoLoss, LossDefaults] = {
    "grpo": LossDefaults(),  # Shao et al. 2024, after Schulman et al. 2017
    "dr_grpo": LossDefaults(),  # Liu et al. 2025
    "bnpo": LossDefaults(),
    "dapo": LossDefaults(clip_high=0.28),  # Yu et al. 2025, section 4.1
    "gspo": LossDefaults(3e-4, 4e-4, "sequence"),  # Zheng et al. 2025, section 5.1
    "luspo": LossDefaults(3e-4, 4e-4, "sequence"),  # GSPO's, whose answers it weighs by their lengths
    "cispo": LossDefaults(None, 5.0, two_sided=False),  # Khatri et al. 2025 (ScaleRL), after MiniMax 2025
    "sapo": LossDefaults(None, None, two_sided=False),  # a soft gate in place of a clip
    "vespo": LossDefaults(None, None, two_sided=False),
}


class GroupStage(OnlineStage):
    """What GRPO and RLOO share."""

    rewards: RewardList = ()
    """Rewards, whose weighted sum is maximised; with an environment they score an episode's last answer, and its own
    reward is added. Without an environment at least one is required."""
    environment: AnyEnvironment | None = None
    """What answers the policy, so that an episode has several turns. null: an episode is one answer."""
    per_prompt: Annotated[int, Field(ge=2)] = 8
    """Answers to one prompt, the group size G."""

    beta: NotNegative
    """Coefficient of the KL divergence from the policy at the start. 0: no reference is held."""
    missing_eos_penalty: NotNegative = 1.0
    """Subtracted from the reward of an answer that was cut off, in standard deviations of the rewards' weighted sum
    over all answers so far. 1, as in PPO: Huang et al. 2024 (the "EOS trick"), Stiennon et al. 2020. 0: none."""
    mask_truncated: bool = False
    """Leave answers that were cut off out of the loss (Yu et al. 2025, section 3.4)."""
    redraws: Annotated[int, Field(ge=0, le=10)] | None = None
    """How many times groups whose answers all have one reward are replaced by answers to further prompts (dynamic
    sampling, Yu et al. 2025, section 3.2); those that are left then are left out of the loss. What counts is what the
    rewards gave, without what answers lose for a missing end. null: such groups stay."""

    difficulty: Difficulty | None = None
    """Which prompts are asked less often. null: all are asked equally often."""

    @field_validator("rewards")
    @classmethod
    def _names(cls, rewards: RewardList) -> RewardList:
        return unique_names(rewards)

    @model_validator(mode="after")
    def _no_stop_strings(self) -> Self:
        if self.sampling.stop:
            raise ValueError("it samples from the model's own distribution: no stop strings")
        return self

    @model_validator(mode="after")
    def _something_rewards(self) -> Self:
        if not self.rewards and self.environment is None:
            raise ValueError("no rewards: give one or more, or an environment whose reward counts")
        if not self.rewards and self.environment is not None and not self.environment.weight:
            raise ValueError("no rewards, and environment.weight=0 counts none of the environment's")
        check_environment(self.environment, self.rewards, self.sampling)
        return self

    @model_validator(mode="after")
    def _measured_before_it_chooses(self) -> Self:
        if self.difficulty is not None and self.max_staleness:
            raise ValueError(
                f"difficulty chooses prompts by the step before, and max_staleness={self.max_staleness} draws steps "
                "ahead: leave one of them out"
            )
        return self

    def environment_used(self) -> AnyEnvironment | None:
        """What answers its policy, turn by turn."""
        return self.environment

    def can_be_shared(self) -> bool:
        """Whether its work may be given to workers: episodes of several turns are played in one process."""
        return self.environment is None

    def loss_used(self) -> str:
        """The name of its loss, in :mod:`alignment.policy.objectives.table`."""
        return "rloo"

    def clips_used(self) -> tuple[float, float]:
        """The lower and upper clipping bounds of the probability ratio."""
        raise NotImplementedError

    def level_used(self) -> Literal["token", "sequence", "answer"]:
        """What a probability ratio is of."""
        return "answer"

    def trains_first(self) -> bool:
        """Whether the pass that trains is the first that a step needs: the log-probabilities before it are its own.

        Not where several updates follow each other, or advantages hold a KL.
        """
        return self.epochs * self.minibatches == 1 and self.beta == 0

    def entropy_weight(self) -> float:
        """Coefficient of an entropy bonus in the loss."""
        return 0.0


class GrpoStage(GroupStage):
    """Group relative policy optimisation (Shao et al. 2024, DeepSeekMath), with every loss that TRL offers.

    ``loss``: "grpo" the original, a mean over each answer's tokens; "dapo" a mean over all tokens (Yu et al. 2025);
    "dr_grpo" a sum over a constant (Liu et al. 2025); "bnpo" a mean over a minibatch's tokens; "gspo" the ratio of the
    whole answer (Zheng et al. 2025); "cispo" clipped weights (MiniMax 2025); "sapo" a soft gate (Gao et al. 2025);
    "luspo" and "vespo" at the level of the sequence. Each has the range of its own paper.
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
    """TRL's name of the loss, and `gspo`. `dapo`: its default, a mean over all tokens of a batch."""
    advantages: Literal["group", "leave_one_out", "reinforce++"] = "group"
    """What an answer's reward is compared with: the mean of its group over a deviation (Shao et al. 2024), the mean of
    the group's other answers (RLOO), or the group's mean, normalised over all tokens of the step (REINFORCE++ with a
    baseline, Hu et al. 2025)."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Lower clipping bound ε of the probability ratio. null: the loss's own, 0.2 (Schulman et al. 2017), and 0.0003 of
    `gspo` and `luspo` (Zheng et al. 2025); `cispo`, `sapo` and `vespo` have none."""
    clip_high: Positive | None = None
    """Upper clipping bound ε of the probability ratio. null: the loss's own, 0.2, 0.28 of `dapo` ("clip higher", Yu et
    al. 2025), 0.0004 of `gspo` and `luspo`; of `cispo` 5.0 (Khatri et al. 2025), the bound of the weight itself; `sapo`
    and `vespo` have none."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """The standard deviation that advantages are divided by. `none`: Liu et al. 2025 (Dr. GRPO)."""
    importance_level: ImportanceLevel | None = None
    """Probability ratio of each token, or of the whole answer (GSPO, Zheng et al. 2025). null: the loss's own, the
    answer's for `gspo` and `luspo`, the token's for the others."""
    aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Order of summing several rewards and normalising them. GDPO normalises each first."""
    delta: Positive | None = None
    """Upper bound of the ratio where the advantage is negative (INTELLECT-2). null: none."""
    top_entropy: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the tokens that are trained, those with the highest entropy of a minibatch, before the step's update
    (Wang et al. 2025, "Beyond the 80/20 rule")."""
    entropy_coefficient: NotNegative = 0.0
    """Coefficient of an entropy bonus."""
    sapo_temperatures: tuple[Positive, Positive] = (1.0, 1.05)
    """Temperatures of SAPO's gate where the advantage is positive, and where negative (Gao et al. 2025)."""

    @model_validator(mode="after")
    def _ranges_fit_the_loss(self) -> Self:
        if faults := range_faults(self.loss, self.importance_level, self.clip_low, self.clip_high, self.delta):
            raise ValueError("; ".join(faults))
        if self.advantages != "group":
            for name, default in (("scale_rewards", "group"), ("aggregation", "sum_then_normalize")):
                if getattr(self, name) != default:
                    raise ValueError(f"{name}={getattr(self, name)} means nothing for advantages={self.advantages}")
        return self

    def loss_used(self) -> str:
        """The name of its loss."""
        return self.loss

    def clips_used(self) -> tuple[float, float]:
        """The lower and upper clipping bounds: its own, or those of its loss; 0 where the loss has none."""
        own = LOSSES[self.loss]
        low = own.clip_low if self.clip_low is None else self.clip_low
        high = own.clip_high if self.clip_high is None else self.clip_high
        return low or 0.0, high or 0.0

    def level_used(self) -> Literal["token", "sequence", "answer"]:
        """What a probability ratio is of."""
        return self.importance_level or LOSSES[self.loss].level

    def entropy_weight(self) -> float:
        """Coefficient of an entropy bonus in the loss."""
        return self.entropy_coefficient

    def trains_first(self) -> bool:
        """Whether the pass that trains is the first that a step needs: the log-probabilities before it are its own.

        Not where several updates follow each other, or tokens are chosen by their entropy.
        """
        return self.epochs * self.minibatches == 1 and self.top_entropy == 1


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
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Lower clipping bound ε of the probability ratio. 0.2: Schulman et al. 2017."""
    clip_high: Positive = 0.2
    """Upper clipping bound ε of the probability ratio. 0.28 is "clip higher" (Yu et al. 2025, DAPO)."""
    normalize_advantages: bool = False
    """Divide advantages by their standard deviation."""
    clip_rewards: tuple[float, float] | None = None
    """Bounds that rewards are clipped to. null: none."""

    def clips_used(self) -> tuple[float, float]:
        """The lower and upper clipping bounds."""
        return self.clip_low, self.clip_high


def range_faults(
    loss: GrpoLoss, level: ImportanceLevel | None, low: float | None, high: float | None, delta: float | None
) -> list[str]:
    """What is wrong with a loss's ranges as a recipe gives them (None: not given), each with what to do."""
    own = LOSSES[loss]
    faults = []
    for name, value, taken in (("clip_low", low, own.clip_low), ("clip_high", high, own.clip_high)):
        if value is not None and taken is None:
            faults.append(f"{name}={value:g} means nothing for loss={loss}: leave it out")
    if delta is not None and not own.two_sided:
        faults.append(f"delta={delta:g} means nothing for loss={loss}: leave it out")
    if loss == "cispo" and high is not None and high <= 1:
        faults.append(
            f"clip_high={high:g}: CISPO bounds the weight itself, so every weight would be at most {high:g}: leave it "
            "out (5.0), or give a bound above 1"
        )
    if own.clip_high is not None and loss != "cispo" and (level or own.level) == "sequence":
        given = [("clip_low", low), ("clip_high", high)]
        missing = [name for name, value in given if value is None and own.level != "sequence"]
        wide = [f"{name}={value:g}" for name, value in given if value is not None and value > WIDEST_SEQUENCE]
        if missing or wide:
            what = f"{' and '.join(missing)} left at a token's range" if missing else " and ".join(wide)
            faults.append(
                f"importance_level=sequence with {what} clips nothing: an answer's ratio moves by thousandths; use "
                "loss: gspo, or give clip_low: 0.0003 and clip_high: 0.0004"
            )
    if delta is not None and own.two_sided:
        upper = 1 + (high if high is not None else own.clip_high or 0.0)
        if delta <= upper:
            faults.append(f"delta={delta:g} is not above 1 + clip_high={upper:g}, where the clip ends already")
    return faults
