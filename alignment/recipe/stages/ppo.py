"""The settings of PPO."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from alignment.recipe.base import Count, Fraction, Name, NotNegative, Positive
from alignment.recipe.raters import SimulatedRaters
from alignment.recipe.rewards.components import REWARD_READS, RewardList, unique_names
from alignment.recipe.stages.online import OnlineStage
from alignment.recipe.stages.spec import StageSpec


class PpoStage(OnlineStage):
    """Proximal policy optimisation (Schulman et al. 2017; Ouyang et al. 2022) against a reward model, rewards, or both.

    One step draws ``episodes`` answers, scores them, and passes over them ``epochs`` times in ``minibatches`` pieces,
    each an optimizer step. Defaults are those of Huang et al. 2024 ("The N+ implementation details of RLHF with PPO"),
    where nothing else is said.
    """

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.ppo",
        makes=("policy",),
        reads={"model": "policy", "reward": "reward_model", **REWARD_READS},
        data=("prompts",),
        sharing="batches",
        samples=True,
        headline=("score",),
    )
    kind: Literal["ppo"]
    """Proximal policy optimisation."""
    reward: Name | None = None
    """A stage of kind `reward`, of weight 1 beside `rewards`."""
    rewards: RewardList = ()
    """Rewards, whose weighted sum is added to the reward model's score."""
    epochs: Count = 4
    """Passes over a step's answers. 4: Huang et al. 2024."""

    learning_rate: Positive = 3e-5
    """Peak learning rate of the policy. 3e-5, for LoRA: ten times the 3e-6 of full training (Huang et al. 2024)."""
    critic_learning_rate: Positive = 1e-4
    """Peak learning rate of the critic, whose zero head has further to go than the policy."""

    kl_coefficient: NotNegative = 0.05
    """Coefficient of the KL penalty, at the start where it is adaptive. 0.05: Huang et al. 2024."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the KL penalty stands: in the reward as in Ouyang et al. 2022, or in the loss as in Shao et al. 2024."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the KL penalty (Schulman 2020). In the reward k1 alone is a penalty: no gradient flows through a
    reward, and the expected gradients that k2 and k3 give there are nearly nothing. In the loss k2 has the gradient of
    KL(policy ‖ reference), k3 that of KL(reference ‖ policy), and k1 none (Tang & Munos 2025, "On a few pitfalls in KL
    divergence gradient estimation")."""
    kl_target: Positive | None = None
    """KL in nats per answer that the adaptive coefficient aims at (Ziegler et al. 2019). null: a constant
    coefficient."""
    kl_horizon: Positive = 10_000
    """Episodes in which the adaptive coefficient changes by a fifth at most. 10,000: Ziegler et al. 2019."""
    missing_eos_penalty: NotNegative = 1.0
    """Subtracted from the score of an answer that was cut off (Huang et al. 2024, the "EOS trick"; Stiennon et al.
    2020): in deviations of the scores, or in the reward's own units where scores are not normalised."""
    normalise_scores: bool = True
    """Scores in standard deviations from their mean, both over all answers so far (Zheng et al. 2023, "Secrets of RLHF
    Part I: PPO"): kl_coefficient, missing_eos_penalty and value_clip then fit rewards of any offset and scale.
    ``score`` is reported in the reward's own units all the same."""
    baseline: Literal["none", "prompt"] = "none"
    """``prompt`` subtracts from a score the mean of the other answers to its prompt (Kool et al. 2019; Ahmadian et al.
    2024, RLOO): easy prompts no longer look like good answers while the critic is young. Needs per_prompt ≥ 2."""
    whiten_rewards: bool = False
    """Divide the rewards of tokens by their standard deviation; their mean is left alone."""
    whiten_advantages: bool = True
    """Normalise each step's advantages to mean 0 over answers and unit variance over tokens."""
    gamma: Fraction = 1.0
    """Discount γ of later rewards, per token. 1, none: Stiennon et al. 2020."""
    lam: Fraction = 1.0
    """λ of generalised advantage estimation (Schulman et al. 2016). 1: every token answers for the whole score (Hu et
    al. 2025, Open-Reasoner-Zero; Yuan et al. 2025, VC-PPO). At 0.95 (Stiennon et al. 2020) a critic that knows nothing
    yet has a token 60 places before the end learn from a twentieth of the score, and what the first steps teach is
    where a token stands."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Lower clipping bound ε of the probability ratio. 0.2: Schulman et al. 2017."""
    clip_high: Positive = 0.2
    """Upper clipping bound ε of the probability ratio. 0.28 is "clip higher" (Yu et al. 2025, DAPO)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound on the ratio where the advantage is negative. 3.0 in Ye et al. 2020; null: none."""
    value_clip: Positive | None = 0.2
    """Distance from the old value at which a new one is clipped, in deviations of the scores where these are
    normalised. null: no clipping."""
    value_coefficient: Positive = 0.1
    """Weight of the value loss beside the policy's. 0.1: Huang et al. 2024."""
    max_approximate_kl: Positive | None = None
    """KL from the step's own start, in nats per token, above which its passes end. null: no bound."""
    critic: Literal["shared", "policy", "reward"] = "shared"
    """The value function: a head on the policy's own trunk, or a second trunk that starts as the policy's or the
    reward model's."""
    raters: SimulatedRaters | None = None
    """Who compares the policy's greedy answers to held-out prompts with those of its start, while it trains: a score
    that rises while their win rate falls is overoptimisation (Gao et al. 2022), and an alarm."""
    watch_every: Count = 10
    """Steps between two of the raters' comparisons."""
    watch_prompts: Count = 32
    """Held-out prompts of a comparison, those with the smallest ids."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        unique_names(self.rewards)
        if self.reward is None and (not self.rewards or self.critic == "reward"):
            raise ValueError("give a reward model" + ("" if self.rewards else ", rewards, or both"))
        if self.critic != "shared" and self.adapter is not None:
            raise ValueError(
                f"critic={self.critic} has a trunk of its own, which adapter={self.adapter.label()} would not train: "
                "leave it at shared, or set lora"
            )
        if self.baseline == "prompt" and self.per_prompt < 2:
            raise ValueError("baseline=prompt compares the answers to one prompt: per_prompt must be at least 2")
        if self.kl_in == "reward" and self.kl_estimator != "k1":
            raise ValueError(
                f"kl_estimator={self.kl_estimator} is no penalty in the reward, through which no gradient flows: "
                "leave it at k1, or set kl_in to loss"
            )
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError("kl_estimator=k1 has no expected gradient in the loss: set it to k2 or k3 for kl_in=loss")
        return self

    def named_files(self) -> dict[str, str]:
        """The rubric, where raters follow one."""
        return {} if self.raters is None else {"rubric": self.raters.rubric}

    def asks_held_out(self) -> bool:
        """Whether it asks the held-out part of ``data.prompts``."""
        return self.raters is not None
