"""The recipe: one YAML file that says all of a run. Unknown keys are errors; defaults are the methods' published ones.

A recipe's ``stages`` are a mapping from a name to a stage; the order is the order they run in. A stage names its inputs
by the stages that make them (``base`` is the base model). :mod:`alignment.check` finds what is wrong with one.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from alignment.evaluation.gate_settings import Condition as Condition
from alignment.evaluation.gate_settings import Gate as Gate
from alignment.evaluation.settings import EvaluateStage as EvaluateStage
from alignment.evaluation.settings import OveroptimisationStage as OveroptimisationStage
from alignment.evaluation.settings import TournamentStage as TournamentStage
from alignment.policy.group_settings import GroupStage as GroupStage
from alignment.policy.group_settings import GrpoStage as GrpoStage
from alignment.policy.group_settings import RlooStage as RlooStage
from alignment.policy.ppo_settings import PpoStage as PpoStage
from alignment.preferences.feedback_settings import ConstitutionStage as ConstitutionStage
from alignment.preferences.feedback_settings import PairClassifierStage as PairClassifierStage
from alignment.preferences.feedback_settings import SynthesisStage as SynthesisStage
from alignment.preferences.judges.settings import JudgeStage as JudgeStage
from alignment.preferences.judges.settings import judge_models, judge_role, pays
from alignment.recipe_base import BASE as BASE
from alignment.recipe_base import CHAMPION as CHAMPION
from alignment.recipe_base import Count, Fraction, Name, NotNegative, Positive, Settings
from alignment.recipe_base import Lora as Lora
from alignment.recipe_base import SimulatedRaters as SimulatedRaters
from alignment.recipe_base import Training as Training
from alignment.recipe_base import Vllm as Vllm
from alignment.recipe_running import Deployment as Deployment
from alignment.recipe_running import Notify as Notify
from alignment.records import Sampling
from alignment.reward.settings import JudgeReward, ModelReward

DpoLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip


class ModelSettings(Settings):
    """The model to align: a local folder, a hub name, or ``embedded:smollm2-135m``."""

    base: str
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # auto: what the machine is fast in; the run's recipe says
    revision: str | None = None  # of a hub model; pin it, or the recipe can change under you
    chat_template: str | None = None  # a Jinja file, for a base model that has none
    registered_name: Name = "policy"


class DataSettings(Settings):
    """Where the data is. Paths are relative to the recipe's own folder."""

    prompts: str | None = None
    demonstrations: str | None = None
    preferences: str | None = None
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2  # share of prompts kept for evaluation, chosen by digest


class SftStage(Training):
    """Supervised fine-tuning, loss on the assistant's tokens only."""

    kind: Literal["sft"]
    model: Name = BASE
    demonstrations: Name | None = None  # a stage that makes them; None: the file data.demonstrations
    learning_rate: Positive = 2e-4  # LoRA: ten times full fine-tuning's 2e-5 (Dettmers et al. 2023, table 9)
    epochs: Positive = 3.0  # Ouyang et al. 2022 and Zhou et al. 2023 train several epochs on little data
    packing: bool = False


class SampleStage(Settings):
    """Draws ``per_prompt`` responses to every training prompt from a policy."""

    kind: Literal["sample"]
    model: Name = BASE
    per_prompt: Annotated[int, Field(ge=1, le=64)] = 4
    sampling: Sampling = Sampling(temperature=1.0, top_p=0.95, max_new_tokens=128)
    best_of: Count = 1  # candidates for each response, of which `reward` keeps the best (Stiennon et al. 2020)
    reward: Name | None = None
    batch_size: Count = 64
    limit: Count | None = None  # prompts
    workers: Count | None = None  # None: as many as `resources.workers`; the responses are the same

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.best_of > 1) != (self.reward is not None):
            raise ValueError("best_of above 1 needs a reward that chooses, and a reward chooses only among best_of")
        if 1 < self.sampling.beams < self.per_prompt:
            raise ValueError(f"{self.sampling.beams} beams end in no more responses than that: lower per_prompt")
        if self.sampling.beams > 1 and self.best_of > 1:
            raise ValueError("beams are no draws of their own: best_of needs sampling")
        return self


class PreferencesStage(Settings):
    """Raters compare the responses; their votes become consensus pairs with margins."""

    kind: Literal["preferences"]
    responses: Name | Annotated[tuple[Name, ...], Field(min_length=1)]  # of several policies, where several are named
    raters: SimulatedRaters
    comparisons_per_prompt: Count = 2
    min_agreement: Fraction = 0.5  # pairs on which fewer of the raters agree are kept as votes, not trained on


CriterionName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,23}$")]


class HumanPreferencesStage(Settings):
    """People compare the responses in the raters' app. The run waits for them without taking compute.

    Enough are ``pairs`` pairs, each judged by ``votes_per_comparison`` people of whom ``min_agreement`` agree.
    ``criteria`` (name: what 1, 3 and 5 mean) are what they may score each answer by; left out, the desk's own.
    """

    kind: Literal["human_preferences"]
    responses: Name
    comparisons_per_prompt: Count = 1
    votes_per_comparison: Count = 3
    pairs: Count = 100
    min_agreement: Fraction = 0.5
    criteria: dict[CriterionName, Annotated[str, Field(min_length=1, max_length=500)]] = Field({}, max_length=8)


class PreferenceFileStage(Settings):
    """Preferences that the user brings (``data.preferences``)."""

    kind: Literal["preference_file"]
    format: Literal["auto", "trl", "hh_rlhf", "oasst"] = "auto"
    limit: Count | None = None  # pairs, taken in the order of their digests


class RewardStage(Training):
    """A Bradley–Terry reward model (Ouyang et al. 2022, eq. 1; margins as in Touvron et al. 2023, eq. 2)."""

    kind: Literal["reward"]
    model: Name = BASE
    preferences: Name
    learning_rate: Positive = 1e-4  # LoRA: ten times the 1e-5 of Touvron et al. 2023
    use_margin: bool = False
    center_rewards_coefficient: NotNegative | None = 0.01  # Eisenstein et al. 2023: keeps scores centred


class DpoStage(Training):
    """Direct preference optimisation (Rafailov et al. 2023), with every loss that TRL offers."""

    kind: Literal["dpo"]
    model: Name
    preferences: Name
    learning_rate: Positive = 5e-6  # LoRA: ten times the 5e-7 of Tunstall et al. 2023 (Zephyr)
    beta: Positive = 0.1  # Rafailov et al. 2023
    loss: DpoLoss = "sigmoid"
    snapshot_every: Count | None = None  # optimizer steps: the policy is kept as it is then; None: only at the end
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0


Stage = Annotated[
    SftStage
    | SampleStage
    | PreferencesStage
    | HumanPreferencesStage
    | PreferenceFileStage
    | JudgeStage
    | RewardStage
    | PairClassifierStage
    | ConstitutionStage
    | SynthesisStage
    | DpoStage
    | PpoStage
    | GrpoStage
    | RlooStage
    | EvaluateStage
    | TournamentStage
    | OveroptimisationStage,
    Field(discriminator="kind"),
]  # fmt: skip


class Resources(Settings):
    """Where stages run."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Count | None = None  # CPU threads; None: one per core. Part of the run's identity: sums depend on it
    deterministic: bool = True  # on a GPU: kernels that sum in one order, where torch has them; false: the faster ones
    vllm: Vllm | None = None  # samples for the stages sample, ppo, grpo and rloo; None: transformers, in this process
    workers: Count = 1  # processes that train, sample, judge and evaluate; 1 without an address: this one, and no Ray
    gpus_per_worker: NotNegative | None = None  # None: one where the device is a GPU
    address: str | None = None  # a Ray cluster's: "auto" or host:port, from a machine in it; "local": a Ray of this one
    sharding: Literal["none", "fsdp"] = "none"  # "fsdp": workers that train hold a part of a model each, not all of it
    min_workers: Count | None = None  # so few go on when a node is lost, more join when there is room; None: `workers`
    max_failures: Annotated[int, Field(ge=0)] = 3  # dead workers after which a stage ends; before, it goes on
    stall_seconds: Positive = 1800.0  # without a step, after which a stage on Ray ends with its workers' stacks
    limit: Name | None = None  # a Prefect concurrency limit of which a stage that loads a model holds slots, strictly
    slots: Count | None = None  # how many; None: its GPUs

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} is more than workers={self.workers}")
        return self

    @field_validator("address")
    @classmethod
    def _no_client(cls, address: str | None) -> str | None:
        if address is not None and "://" in address:
            raise ValueError("run this command as a Ray job on the cluster, with address: auto (see README)")
        return address


class Recipe(Settings):
    """All of a run."""

    name: Name
    description: str = ""
    seed: int = Field(default=0, ge=0, lt=2**31)
    model: ModelSettings
    data: DataSettings = DataSettings()
    stages: dict[Name, Stage] = Field(min_length=1)
    gate: Gate | None = None
    resources: Resources = Resources()
    deployment: Deployment = Deployment()
    notify: Notify | None = None


def trains_together(stage: Any) -> bool:
    """Whether several workers of a stage share each batch, and so each sum; others do pieces that depend on none."""
    return isinstance(stage, Training | GroupStage | PpoStage)


def has_workers(stage: Any) -> bool:
    """Whether a stage's work may be given to workers; what only waits for an endpoint is not."""
    return hasattr(stage, "workers") and not (isinstance(stage, JudgeStage) and pays(stage.judge))


def workers_of(recipe: Recipe, stage: Any) -> int:
    """How many processes do a stage's work; one that can be given to no workers takes one."""
    if not has_workers(stage):
        return 1
    return stage.workers or recipe.resources.workers


def trains_on_several(recipe: Recipe, stage: Any) -> bool:
    """Whether a stage trains on more than one worker; those are who shards."""
    return trains_together(stage) and workers_of(recipe, stage) > 1


def fewest_workers(recipe: Recipe, stage: Any) -> int:
    """How many of them go on where a cluster has room for no more."""
    return min(recipe.resources.min_workers or workers_of(recipe, stage), workers_of(recipe, stage))


def stage_inputs(stage: Any) -> dict[str, tuple[str, ...]]:
    """The stages (or ``base``) that ``stage`` reads from, by the role they play in it."""
    roles: dict[str, tuple[str, ...]] = {}
    for role in ("model", "models", "policies", "responses", "preferences", "demonstrations", "reward", "reference",
                 "prompts", "against"):  # fmt: skip
        value = getattr(stage, role, None)
        if value is not None:
            roles[role] = (value,) if isinstance(value, str) else tuple(value)
    if models := tuple(reward.model for reward in getattr(stage, "rewards", ()) if isinstance(reward, ModelReward)):
        roles["rewards"] = models
    own = getattr(stage, "judge", None)
    judges = [] if own is None else [own]
    judged = [reward for reward in getattr(stage, "rewards", ()) if isinstance(reward, JudgeReward)]
    for judge in [*judges, *(reward.judge for reward in judged)]:
        role = judge_role(judge)
        if named := judge_models(judge):
            roles[role] = tuple(dict.fromkeys((*roles.get(role, ()), *named)))
    if isinstance(stage, ConstitutionStage) and stage.writer.model is not None:
        roles["writer"] = (stage.writer.model,)
    calibrated = tuple(one.calibrated_by for one in (stage, *judged) if getattr(one, "calibrated_by", None) is not None)
    if isinstance(stage, JudgeStage) and stage.calibration is not None:
        roles["calibration"] = (stage.calibration,)
    if calibrated:
        roles["calibrated_by"] = calibrated
    return roles
