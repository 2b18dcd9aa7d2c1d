"""What a kind of stage is to everything but the stage itself, asked by pipeline, checks, plan and report.

No words that are shown stand here: this module's code is part of every stage's cache key.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from alignment.recipe.base import AdapterSettings, Product, Settings
from alignment.records import Sampling

Sharing = Literal["batches", "pieces", "none"]

UNCOUNTED: Any = {
    "raters": {"rubric"},
    "judge": {"folder"},
    "constitution": True,
    "qualification": True,
    "consent": True,
    "questions": True,
    "encoder": {"folder"},
    "folder": True,
    "prompting": {"examples"},
    "tasks": {"__all__": {"questions", "examples"}},
    "rewards": {"__all__": {"function": True, "folder": True, "judge": {"folder"}}},
    "environment": {"class_path"},
    "workers": True,
    "seed": True,
}
"""Settings that do not count as they are written: paths, whose files count by what they hold, who does the work, and a
stage's seed, which counts as the run's."""


@dataclass(frozen=True, slots=True)
class StageSpec:
    """What a kind of stage reads, makes and needs.

    Attributes:
        run: the module whose ``run(settings, context)`` makes the stage.
        makes: what other stages can read of its artifact.
        reads: by role, what the stages must make that the setting of that name gives.
        data: the data files that it reads; a setting of the same name takes a file's place.
        sharing: how several workers do it: they share each batch, and so each sum ("batches"), do pieces that depend
            on no other ("pieces"), or not at all ("none").
        computes: whether it runs a model, and so takes its share of a limited resource such as GPUs.
        samples: whether it draws answers from a policy, which a vLLM server may do in its place.
        champion_roles: the roles in which the promoted version may stand for a stage.
        encoder_decoder_roles: the roles in which a policy may be an encoder with a decoder (T5, BART).
        headline: the metrics that say most of it, the most telling first.
    """

    run: str
    makes: tuple[Product, ...]
    reads: Mapping[str, Product] = field(default_factory=dict)
    data: tuple[str, ...] = ()
    sharing: Sharing = "none"
    computes: bool = True
    samples: bool = False
    champion_roles: tuple[str, ...] = ()
    encoder_decoder_roles: tuple[str, ...] = ()
    headline: tuple[str, ...] = ()


class StageSettings(Settings):
    """The settings of a stage. What only some kinds have is asked by a method that says ``None`` for the others."""

    spec: ClassVar[StageSpec]
    kind: str
    """Which kind of stage it is."""
    round: Annotated[int, Field(ge=1)] = 1
    """The round that it belongs to, which `rounds` of the recipe sets: seeds, and the prompts of a `limit`, are others
    in each."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Seed of its draws: the order of its data, new weights, answers, simulated raters. null: the recipe's."""

    def products(self) -> tuple[Product, ...]:
        """What other stages can read of its artifact: all that its kind makes, unless its settings choose."""
        return self.spec.makes

    def counted(self) -> dict[str, Any]:
        """Its settings as the cache key counts them."""
        counted = self.model_dump(mode="json", exclude=UNCOUNTED)
        environment = self.environment_used()
        return counted if environment is None else counted | {"of the environment": environment.counted()}

    def inputs(self) -> dict[str, tuple[str, ...]]:
        """The stages (or ``base``) that its own settings name, by role.

        :func:`alignment.recipe.graph.stage_inputs` adds those of its judge and its rewards.
        """
        named = {role: getattr(self, role, None) for role in self.spec.reads}
        lists = {role: (value,) if isinstance(value, str) else value for role, value in named.items()}
        return {
            role: value
            for role, value in lists.items()
            if isinstance(value, tuple) and value and all(isinstance(name, str) for name in value)
        }

    def data_files(self, given: Container[str] = ()) -> tuple[str, ...]:
        """The data files that it reads of a recipe that gives ``given``: those of ``spec.data``.

        Held-out prompts in a file of their own take the place of ``prompts`` where policies are measured; who keeps
        away from them reads both.
        """
        files = tuple(name for name in self.spec.data if getattr(self, name, None) is None)
        if "prompts" not in files or "held_out_prompts" not in given:
            return files
        if self.evaluates():
            return tuple("held_out_prompts" if name == "prompts" else name for name in files)
        return (*files, "held_out_prompts") if self.avoids_held_out() else files

    def named_files(self) -> dict[str, str]:
        """Files of its own that it names by a path, by what they are: a rubric, a constitution."""
        return {}

    def model_folders(self) -> dict[str, str]:
        """Folders of models of its own that it names by a path, by what they are: an encoder."""
        return {}

    def version_used(self) -> str | None:
        """The registered version that it is, as the registry names it: ``policy@champion``."""
        return None

    def is_outside(self) -> bool:
        """Whether the policy that it makes is a model from outside the recipe, whose tokenizer may be another."""
        return False

    def encoder_used(self) -> Any | None:
        """The encoder that it starts from in place of a policy (:class:`~.scoring.EncoderSettings`)."""
        return None

    def reads_base(self) -> bool:
        """Whether it is given the recipe's base, which a policy's adapter stands on."""
        return self.spec.computes and not self.makes_base()

    def seed_used(self) -> int | None:
        """The seed that it draws by in place of the recipe's."""
        return self.seed

    def rewards_used(self) -> tuple[Any, ...]:
        """Its reward functions (:data:`alignment.recipe.rewards.components.RewardList`)."""
        return ()

    def judge_used(self) -> Any | None:
        """The judge that it asks (:data:`alignment.recipe.judges.AnyJudge`), but for those of its rewards."""
        return None

    def endpoints_used(self) -> tuple[tuple[str, Any], ...]:
        """The endpoints that write for it and judge nothing, each with its field."""
        return ()

    def calibration_used(self) -> str | None:
        """The stage that says how far its judge can be trusted."""
        return None

    def workers_wanted(self) -> int | None:
        """How many processes do its work; None: as many as the recipe says for all stages."""
        workers: int | None = getattr(self, "workers", None)
        return workers

    def can_be_shared(self) -> bool:
        """Whether its work may be given to workers."""
        return self.spec.sharing != "none"

    def even_batch(self) -> tuple[int, int] | None:
        """``batch_size`` and ``gradient_accumulation`` of batches that workers share evenly; None: parts may differ."""
        return None

    def rollout_processes(self) -> int:
        """Processes apart from its workers that draw its answers."""
        return 0

    def snapshot_steps(self) -> int | None:
        """Optimizer steps between two snapshots of the policy that it trains."""
        return None

    def answers_per_prompt(self) -> int | None:
        """Responses that it makes to each prompt."""
        return None

    def compares_responses(self) -> bool:
        """Whether it has the responses to a prompt compared with each other."""
        return False

    def demonstrations_kept(self) -> int | None:
        """Demonstrations that it makes of each prompt's responses; None: of every response one."""
        return None

    def pairs_wanted(self) -> int | None:
        """Pairs that are enough for it."""
        return None

    def written_tokens(self) -> int:
        """The longest text that it has a model write, in tokens, but for sampled answers."""
        return 0

    def sampling_used(self) -> Sampling | None:
        """How it draws answers to the prompts of its file."""
        return None

    def prompting_used(self) -> Any | None:
        """The form in which it puts its prompts (:class:`alignment.recipe.stages.prompting.Prompting`)."""
        return None

    def environment_used(self) -> Any | None:
        """What answers its policy, turn by turn (:data:`alignment.recipe.stages.environment.AnyEnvironment`)."""
        return None

    def longest_answer(self) -> int | None:
        """The most tokens that follow a prompt where it draws answers; of an episode those of all turns."""
        if (environment := self.environment_used()) is not None:
            longest: int = environment.max_tokens
            return longest
        sampling = self.sampling_used()
        return None if sampling is None else sampling.max_new_tokens

    def longest_prompt(self) -> int | None:
        """Tokens above which a prompt is left out."""
        return None

    def trained_length(self) -> int | None:
        """Tokens at which the conversations that it trains on are cut, or left out."""
        return None

    def packs_rows(self) -> bool:
        """Whether it puts several conversations into one row."""
        return False

    def router_loss_used(self) -> float | None:
        """Coefficient of the routers' loss, where it is set."""
        return None

    def cut_chosen_used(self) -> Literal["drop", "keep"] | None:
        """What becomes of pairs whose chosen answer was cut off."""
        return None

    def answers_shortened_to(self) -> int | None:
        """Tokens at which it cuts an answer before it reads it beside another."""
        return None

    def evaluates(self) -> bool:
        """Whether it measures policies, on prompts that none was trained on."""
        return False

    def steps_planned(self) -> int | None:
        """Steps that it takes, where its settings say so."""
        return None

    def reward_model_used(self) -> str | None:
        """The stage whose reward model it asks, but for those of its rewards."""
        named: str | None = getattr(self, "reward", None)
        return named

    def adapter_trained(self) -> AdapterSettings | None:
        """The adapter that it trains; None where it trains the model's own weights, or none."""
        return None

    def trained_part(self) -> AdapterSettings | None:
        """What it trains in place of all weights: an adapter, or some of the model's own; None: all, or none."""
        return None

    def can_recompute(self) -> bool:
        """Whether activations may be recomputed in the backward pass."""
        return True

    def quantises(self) -> str | None:
        """How the weights of the policy that it leaves are quantised; None where they are not."""
        return None

    def rounds_weights(self) -> str | None:
        """How each forward pass of its training rounds weights (quantisation-aware training); None where none does."""
        return None

    def removes_layers(self) -> float | None:
        """The share of a policy's layers that the policy that it leaves has; None where it has all."""
        return None

    def memory_settings(self) -> dict[str, int]:
        """Its settings that memory grows with, and their values."""
        named = {name: getattr(self, name, None) for name in ("batch_size", "max_length")}
        return {name: value for name, value in named.items() if value is not None}

    def lighter(self) -> dict[str, Any] | None:
        """The next change of its settings with which it needs less memory for the same result; None: none is left."""
        if getattr(self, "gradient_checkpointing", None) is False and self.can_recompute():
            return {"gradient_checkpointing": True}
        size, accumulation = getattr(self, "batch_size", 1), getattr(self, "gradient_accumulation", None)
        if size < 2:
            return None
        return {"batch_size": size // 2} | ({"gradient_accumulation": 2 * accumulation} if accumulation else {})

    def trains_adapter(self) -> bool:
        """Whether it can train an adapter in place of all weights."""
        return "lora" in type(self).model_fields

    def makes_base(self) -> bool:
        """Whether the model that it makes is what ``base`` is to the stages after it."""
        return False

    def asks_held_out(self) -> bool:
        """Whether it asks held-out prompts of the recipe's data; who ``evaluates``, those of their own file if any."""
        return False

    def avoids_held_out(self) -> bool:
        """Whether it leaves out what repeats a held-out prompt."""
        return False
