"""The settings of an evaluation: a candidate against opponents on held-out prompts."""

from collections.abc import Container
from typing import ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from alignment.recipe.base import BASE, Count, Name, Part
from alignment.recipe.judges import JudgeSettings, check_calibration
from alignment.recipe.metrics import MetricList, PassAtK, distinguishable
from alignment.recipe.raters import SimulatedRaters
from alignment.recipe.rewards.components import REWARD_READS, RewardList, unique_names
from alignment.recipe.rewards.settings import reward_name
from alignment.recipe.stages.environment import ENVIRONMENT, AnyEnvironment, check_environment
from alignment.recipe.stages.prompting import EXAMPLES, Prompting
from alignment.recipe.stages.spec import StageSettings, StageSpec
from alignment.records import Sampling


class EvaluateStage(StageSettings):
    """Candidate against opponents on held-out prompts: win rates, metrics, rewards, KL, length, repetition.

    An opponent may be ``champion``: the registered version that is promoted when the stage runs, where there is one.
    """

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.evaluate",
        makes=("evaluation",),
        reads={
            "model": "policy",
            "reward": "reward_model",
            "reference": "policy",
            "prompts": "held_out_prompts",
            "against": "policy",
            **REWARD_READS,
        },
        data=("prompts",),
        sharing="pieces",
        champion_roles=("against",),
        encoder_decoder_roles=("model", "reference", "against"),
    )
    kind: Literal["evaluate"]
    """An evaluation."""
    model: Name
    """The candidate: a stage that makes a policy, or `base`."""
    against: tuple[Name, ...] = (BASE,)
    """Opponents: stages, `base`, or `champion` (left out while there is none)."""
    reference: Name = BASE
    """The policy that the KL divergence is measured from."""
    prompts: Name | None = None
    """A stage of kind `preference_file` whose held-out prompts are asked. null: the recipe's own."""
    split: Literal["held out", "train"] = "held out"
    """Which of the recipe's prompts are asked. `train`: those that stages may train on, which says how well a policy
    has learned and nothing of other prompts; such a look spends nothing of the held-out prompts, and no gate decides
    by it."""
    raters: SimulatedRaters | None = None
    """Simulated raters that compare the answers by a rubric."""
    judge: JudgeSettings | None = None
    """An AI judge that compares the answers, each pair in both orders."""
    calibrated_by: Name | None = None
    """A stage of kind `judge` with the very same judge. null: its figures are called uncalibrated."""
    reward: Name | None = None
    """A stage of kind `reward` whose model compares the answers."""
    rewards: RewardList = ()
    """Reward functions as metrics: means, and differences from each opponent."""
    environment: AnyEnvironment | None = None
    """What answers the models, as in training: what is measured is an episode's last answer, and the environment's
    reward is the metric `environment`. The KL divergence is of answers to the prompt alone. null: one answer."""
    prompting: Prompting | None = None
    """The form in which all models are asked: system message, solved examples, chain of thought, votes. Judges,
    rewards and metrics see the plain prompt and the response; KL divergence and perplexity are of the plain prompt.
    What was put stands in `asked.jsonl`, what was written in `written.jsonl`. null: the prompts as they are."""
    metrics: MetricList = ()
    """Metrics; a kind may stand for itself."""
    sampling: Sampling = Sampling(temperature=0.0, max_new_tokens=128)
    """How answers are drawn. Greedy by default, so that models are compared at their most likely answer."""
    kl_prompts: Count = 16
    """Prompts for the KL divergence, which needs samples at temperature 1 of its own."""
    batch_size: Count = 64
    """Answers sampled together."""
    limit: Count | None = None
    """Held-out prompts. null: all."""
    part: Part = "all"
    """The part of the held-out prompts that is asked. Left out: all, and after a tournament the half that it did not
    choose on. A half leaves the other one for an unbiased second evaluation."""
    workers: Count | None = None
    """Processes. null: `resources.workers`. Their number does not change the result."""

    @field_validator("rewards")
    @classmethod
    def _names(cls, rewards: RewardList) -> RewardList:
        return unique_names(rewards)

    @model_validator(mode="after")
    def _distinguishable(self) -> Self:
        check_environment(self.environment, self.rewards, self.sampling)
        distinguishable(self.metrics, self.reward_names())
        return self

    @model_validator(mode="after")
    def _asks_one_kind_of_prompts(self) -> Self:
        if self.split == "train" and self.prompts is not None:
            raise ValueError(
                f"split=train asks prompts that are trained on, and {self.prompts} gives held-out ones: leave one out"
            )
        return self

    @model_validator(mode="after")
    def _a_judge_is_calibrated(self) -> Self:
        check_calibration(self.judge, self.calibrated_by)
        return self

    @model_validator(mode="after")
    def _a_form_fits_what_is_asked(self) -> Self:
        if self.prompting is None:
            return self
        if self.environment is not None:
            raise ValueError("prompting puts a question once, and an environment goes on asking: leave one of them out")
        if any(isinstance(metric, PassAtK) for metric in self.metrics):
            raise ValueError("pass_at_k draws answers of its own to the plain prompt: leave it or prompting out")
        if self.prompting.votes > 1 and self.sampling.beams > 1:
            raise ValueError("beams are no draws of their own: prompting.votes needs sampling")
        return self

    def named_files(self) -> dict[str, str]:
        """The rubric, where raters follow one, and the file of its form's examples."""
        files = {} if self.raters is None else {"rubric": self.raters.rubric}
        examples = None if self.prompting is None else self.prompting.examples
        return files if examples is None else files | {EXAMPLES: examples}

    def prompting_used(self) -> Prompting | None:
        """The form in which it puts its prompts."""
        return self.prompting

    def rewards_used(self) -> RewardList:
        """Its reward functions."""
        return self.rewards

    def environment_used(self) -> AnyEnvironment | None:
        """What answers the models, turn by turn."""
        return self.environment

    def reward_names(self) -> tuple[str, ...]:
        """The names of its reward functions' metrics, and of the environment's reward."""
        own = () if self.environment is None else (ENVIRONMENT,)
        return (*map(reward_name, self.rewards), *own)

    def judge_used(self) -> JudgeSettings | None:
        """The judge that compares."""
        return self.judge

    def calibration_used(self) -> str | None:
        """The stage that says how far its judge can be trusted."""
        return self.calibrated_by

    def data_files(self, given: Container[str] = ()) -> tuple[str, ...]:
        """The file of prompts that it asks: on the training split never the held-out prompts' own."""
        return super().data_files(() if self.split == "train" else given)

    def asks_held_out(self) -> bool:
        """Whether it asks held-out prompts of the recipe's data."""
        return self.prompts is None and self.split == "held out"

    def sampling_used(self) -> Sampling:
        """How it draws its answers."""
        return self.sampling if self.prompting is None else self.prompting.drawn_by(self.sampling)

    def evaluates(self) -> bool:
        """Whether it measures policies, on prompts that none was trained on."""
        return True

    def answers_per_prompt(self) -> int:
        """Answers that it draws to each prompt."""
        return 1
