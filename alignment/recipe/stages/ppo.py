"""The settings of PPO."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from alignment.recipe.base import Count, Fraction, Lora, Name, NotNegative, Positive
from alignment.recipe.raters import SimulatedRaters
from alignment.recipe.rewards import REWARD_READS, RewardList, unique_names
from alignment.recipe.stages.spec import StageSettings, StageSpec
from alignment.records import Sampling


class PpoStage(StageSettings):
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
    model: Name
    reward: Name | None = None  # a reward model, of weight 1 beside `rewards`
    rewards: RewardList = ()
    steps: Count = 100
    episodes: Count = 32  # answers per step
    per_prompt: Count = 1  # answers per prompt; divides `episodes`
    epochs: Count = 4
    minibatches: Count = 1  # divides `episodes`
    batch_size: Count = 8  # answers in one forward and backward pass; bounds memory, changes nothing else
    sampling: Sampling = Sampling(temperature=1.0, max_new_tokens=64)  # top-k, top-p, min-p and penalties stay off
    max_prompt_length: Count = 512  # tokens; longer prompts are left out, and counted

    learning_rate: Positive = 3e-5  # LoRA: ten times the 3e-6 of full training
    critic_learning_rate: Positive = 1e-4  # a critic starts from a zero head, so it has further to go than the policy
    warmup: Fraction = 0.05  # share of the optimizer steps
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: NotNegative = 0.0
    max_grad_norm: Positive = 1.0
    gradient_checkpointing: bool = False
    checkpoint_every: Count = 10  # steps
    snapshot_every: Count | None = None  # steps: the policy is kept as it is then; None: only at the end
    lora: Lora | None = Lora()  # null trains all weights, and keeps a frozen copy as the reference

    kl_coefficient: NotNegative = 0.05
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"  # of the penalty in the reward
    kl_target: Positive | None = None  # nats per answer: turns on the adaptive coefficient (Ziegler et al. 2019)
    kl_horizon: Positive = 10_000  # episodes over which the adaptive coefficient changes by a fifth at most
    missing_eos_penalty: NotNegative = 1.0  # taken off the score of an answer that was cut off
    normalise_scores: bool = False
    """Scores in standard deviations of the start's own, from their mean (Ziegler et al. 2019, section 2.1; Huang et al.
    2024, detail 11), measured on the first step's answers: then one kl_coefficient fits any reward model."""
    baseline: Literal["none", "prompt"] = "none"
    """``prompt`` takes off a score the mean score of the other answers to its prompt (Kool et al. 2019; Ahmadian et al.
    2024, RLOO): easy prompts no longer look like good answers while the critic is young. Wants per_prompt ≥ 2."""
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    clip_high: Positive = 0.2  # 0.28 is "clip higher" (Yu et al. 2025, DAPO)
    dual_clip: Annotated[float, Field(gt=1)] | None = None  # 3.0 in Ye et al. 2020
    value_clip: Positive | None = 0.2
    value_coefficient: Positive = 0.1
    max_approximate_kl: Positive | None = None  # ends a step's passes once its policy has moved so far, nats per token
    importance_cap: Positive | None = None  # 2.0 where another engine samples: truncated importance weights
    critic: Literal["shared", "policy", "reward"] = "shared"
    """The value function: a head on the policy's own trunk, or a second trunk that starts as the policy's or the
    reward model's."""
    raters: SimulatedRaters | None = None
    """Who compares the policy's greedy answers to held-out prompts with those of its start, while it trains: a score
    that rises while their win rate falls is overoptimisation (Gao et al. 2022), and an alarm."""
    watch_every: Count = 10  # steps between two comparisons
    watch_prompts: Count = 32  # held-out prompts, those with the smallest ids
    workers: Count | None = None  # None: as many as `resources.workers`; they share each pass over a step's answers
    rollout_workers: Annotated[int, Field(ge=0)] = 0  # processes apart that draw the answers; 0: the workers themselves
    max_staleness: Literal[0, 1] = 0
    """Steps that the weights which drew an answer may be behind. With 1 the rollout workers draw the next answers while
    a step trains (Noukhovitch et al. 2024); staler answers are refused."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        unique_names(self.rewards)
        if self.reward is None and (not self.rewards or self.critic == "reward"):
            raise ValueError("give a reward model" + ("" if self.rewards else ", rewards, or both"))
        for name in ("per_prompt", "minibatches"):
            if self.episodes % getattr(self, name):
                raise ValueError(f"episodes={self.episodes} is not a multiple of {name}={getattr(self, name)}")
        if self.baseline == "prompt" and self.per_prompt < 2:
            raise ValueError("baseline=prompt compares the answers to one prompt: per_prompt must be at least 2")
        sampling = self.sampling
        if sampling.temperature == 0 or sampling.top_k or sampling.top_p < 1 or sampling.min_p:
            raise ValueError("PPO samples from the whole distribution: a temperature above 0, no top_k, top_p or min_p")
        if sampling.repetition_penalty != 1.0:
            raise ValueError("PPO samples from the model's own distribution: no repetition_penalty")
        if self.max_staleness and not (self.rollout_workers and self.importance_cap):
            raise ValueError("max_staleness above 0 needs rollout_workers that draw ahead, and an importance_cap (2.0)")
        return self

    def named_files(self) -> dict[str, str]:
        """The rubric, where raters follow one."""
        return {} if self.raters is None else {"rubric": self.raters.rubric}

    def rewards_used(self) -> RewardList:
        """Its reward functions."""
        return self.rewards

    def snapshot_steps(self) -> int | None:
        """Optimizer steps between two snapshots of the policy."""
        return self.snapshot_every

    def rollout_processes(self) -> int:
        """Processes apart from its workers that draw its answers."""
        return self.rollout_workers

    def asks_held_out(self) -> bool:
        """Whether it asks the held-out part of ``data.prompts``."""
        return self.raters is not None

    def sampling_used(self) -> Sampling:
        """How it draws its answers."""
        return self.sampling

    def longest_prompt(self) -> int:
        """Tokens above which a prompt is left out."""
        return self.max_prompt_length

    def answers_per_prompt(self) -> int:
        """Answers that it draws to each prompt."""
        return self.per_prompt

    def steps_planned(self) -> int:
        """Steps that it takes."""
        return self.steps
