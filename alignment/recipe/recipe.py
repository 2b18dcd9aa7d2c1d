"""The recipe: one YAML file that says all of a run. Unknown keys are errors; defaults are the methods' published ones.

A recipe's ``stages`` are a mapping from a name to a stage; the order is the order they run in. A stage names its inputs
by the stages that make them (``base`` is the base model). :mod:`alignment.checks.recipe` finds what is wrong with one.
"""

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from alignment.recipe.base import Name, Settings
from alignment.recipe.deployment import Deployment, Notify, TrackerName
from alignment.recipe.gate import Gate
from alignment.recipe.resources import Resources
from alignment.recipe.run_settings import DataSettings, ModelSettings, RunSettings
from alignment.recipe.stages.compression.distil import DistilStage
from alignment.recipe.stages.compression.outside_model import OutsideModelStage
from alignment.recipe.stages.compression.quantise import QuantiseStage
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.recipe.stages.experiments.benchmark import BenchmarkStage
from alignment.recipe.stages.experiments.overoptimisation import OveroptimisationStage
from alignment.recipe.stages.experiments.tournament import OTHER_HALF, TournamentStage, chosen_by
from alignment.recipe.stages.feedback.ai_feedback import ConstitutionStage, SynthesisStage
from alignment.recipe.stages.feedback.judge import JudgeStage
from alignment.recipe.stages.feedback.preferences import HumanPreferencesStage, PreferenceFileStage, PreferencesStage
from alignment.recipe.stages.feedback.rejection_sampling import RejectionSamplingStage
from alignment.recipe.stages.grpo import GrpoStage, RlooStage
from alignment.recipe.stages.pair_classifier import PairClassifierStage
from alignment.recipe.stages.ppo import PpoStage
from alignment.recipe.stages.preference.dpo import DpoStage
from alignment.recipe.stages.preference.kto import KtoStage
from alignment.recipe.stages.preference.reference_free import OrpoStage, SimpoStage
from alignment.recipe.stages.pretraining.pretrain import PretrainStage
from alignment.recipe.stages.pretraining.tokenizer import TokenizerStage
from alignment.recipe.stages.reward import RewardStage
from alignment.recipe.stages.rounds import Rounds, round_seed, rounds_problem, written_out
from alignment.recipe.stages.sample import SampleStage
from alignment.recipe.stages.sft import SftStage
from alignment.recipe.stages.spec import StageSettings

Stage = Annotated[
    TokenizerStage
    | PretrainStage
    | OutsideModelStage
    | SftStage
    | SampleStage
    | PreferencesStage
    | HumanPreferencesStage
    | PreferenceFileStage
    | JudgeStage
    | RewardStage
    | PairClassifierStage
    | ConstitutionStage
    | SynthesisStage
    | RejectionSamplingStage
    | DpoStage
    | KtoStage
    | SimpoStage
    | OrpoStage
    | PpoStage
    | GrpoStage
    | RlooStage
    | DistilStage
    | QuantiseStage
    | EvaluateStage
    | BenchmarkStage
    | TournamentStage
    | OveroptimisationStage,
    Field(discriminator="kind"),
]  # fmt: skip


class Recipe(Settings):
    """All of a run."""

    name: Name
    """Name of the recipe; its runs are named after it."""
    description: str = ""
    """What the run is for, shown in the report."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of every random draw."""
    model: ModelSettings
    """The model to align."""
    data: DataSettings = DataSettings()
    """The data files."""
    stages: dict[Name, Stage] = Field(min_length=1)
    """The stages by name, in the order in which they run."""
    rounds: Rounds | None = None
    """Stages that are repeated, each time with the newest policy. null: each stage runs once."""
    gate: Gate | None = None
    """What a version must show before it is promoted. null: nothing is registered or promoted."""
    resources: Resources = Resources()
    """Where stages run, and on how many processes."""
    deployment: Deployment = Deployment()
    """When `rlhf deploy` starts runs by itself."""
    notify: Notify | None = None
    """Who is told how a run ended."""
    tracking: tuple[TrackerName, ...] = ()
    """Where curves are shown while a stage trains. Empty: in the terminal and on the dashboard alone."""

    @field_validator("stages")
    @classmethod
    def _who_chose_does_not_judge(cls, stages: dict[str, Stage]) -> dict[str, Stage]:
        """An evaluation that says no ``part`` takes the half that did not choose what it evaluates."""
        found = dict(stages)
        for name, stage in stages.items():
            if isinstance(stage, EvaluateStage) and "part" not in stage.model_fields_set and stage.prompts is None:
                halves = {OTHER_HALF.get(one.part) for one in chosen_by(stages, stage.model).values()}
                if len(halves) == 1 and (half := halves.pop()) is not None:
                    found[name] = stage.model_copy(update={"part": half})
        return found

    @field_validator("rounds")
    @classmethod
    def _can_be_repeated(cls, rounds: Rounds | None, others: ValidationInfo) -> Rounds | None:
        problem = rounds_problem(rounds, others.data["stages"]) if rounds and "stages" in others.data else None
        if problem is not None:
            raise ValueError(problem)
        return rounds

    def written_out(self) -> "Recipe":
        """The recipe with its rounds as stages of their own; itself where it has none."""
        if self.rounds is None:
            return self
        gate = None if self.gate is None else self.gate.model_dump(mode="json", exclude_unset=True)
        stages, gate = written_out(self.rounds, self.stages, gate)
        values = self.model_dump(mode="json", exclude={"stages", "gate", "rounds"})
        return Recipe.model_validate({**values, "stages": stages, "gate": gate, "rounds": None})

    def run_settings(self, stage: StageSettings | None = None) -> RunSettings:
        """What every stage is told of the recipe; a ``stage`` may have a seed of its own, and one of a later round
        draws by a seed of that round."""
        own = None if stage is None else stage.seed_used()
        seed = self.seed if own is None else own
        seed = seed if stage is None else round_seed(seed, stage.round)
        return RunSettings(seed=seed, model=self.model, held_out=self.data.held_out, resources=self.resources)
