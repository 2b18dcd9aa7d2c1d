"""From a recipe's stage and its texts to its work: one function for each kind of stage.

Answers that are yet to be drawn count at their longest, and pairs that raters are yet to make at their most.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from alignment.plan.compression import distil, quantise
from alignment.plan.experiments import benchmark, evaluate, overoptimisation, tournament
from alignment.plan.feedback import constitution, made_demonstrations, made_pairs, rejection_sampling, synthesis
from alignment.plan.judges import judge_online, judge_stage, pair_classifier
from alignment.plan.sizes import ModelSize
from alignment.plan.texts import Pair, Texts, TokenLengths
from alignment.plan.thumbs import kto
from alignment.plan.work import Pass, SamplingPass, StageWork, largest_batch
from alignment.recipe.base import BASE, Lora
from alignment.recipe.graph import judge_rewards, trains_on_several, workers_of
from alignment.recipe.recipe import Recipe
from alignment.recipe.rewards import EnsembleReward, ModelReward
from alignment.recipe.stages.grpo import GrpoStage, RlooStage
from alignment.recipe.stages.ppo import PpoStage
from alignment.recipe.stages.preference.dpo import DpoStage
from alignment.recipe.stages.sample import SampleStage
from alignment.recipe.stages.sft import SftStage

NODES = 512  # of a batch's tree, which attend to each other (alignment/models/prefix_sharing.py, which imports torch)
ENGINE_BATCH = 64  # rows that reinforcement learning samples together
CHINCHILLA = 20  # tokens per parameter (Hoffmann et al. 2022, table A3)


class Planner:
    """Knows a recipe, its model's size and its texts; :meth:`work` gives a stage's."""

    def __init__(self, recipe: Recipe, size: ModelSize, texts: Texts) -> None:
        self.recipe, self.size, self.texts = recipe, size, texts

    def work(self, name: str, stage: Any | None = None) -> StageWork:
        """The work of the recipe's stage ``name``, or of ``stage`` in its place."""
        settings = self.recipe.stages[name] if stage is None else stage
        work = StageWork(name, settings.kind, scheme=self.recipe.model.quantise)
        if self.recipe.resources.sharding != "none" and trains_on_several(self.recipe.resources, settings):
            work.parts = workers_of(self.recipe.resources, settings)
        WORK[settings.kind](self, work, settings)
        return work

    def adapter_of(self, name: str) -> Lora | None:
        """The adapter of the policy that a stage makes: an adapter is trained on, whatever the next stage says."""
        stage = self.recipe.stages.get(name)
        if stage is None or "policy" not in stage.spec.makes or stage.quantises() is not None:
            return None
        if stage.adapter_trained() is None and stage.removes_layers() is not None:
            return None  # its weights are its own, whatever it began as
        start = stage.inputs()["policies" if stage.evaluates() else "model"][0]  # a tournament's are mostly alike
        return self.adapter_of(start) or stage.adapter_trained()

    def is_whole(self, name: str) -> bool:
        """Whether a policy has weights of its own."""
        return name != BASE and self.adapter_of(name) is None

    def train_policy(self, work: StageWork, stage: Any) -> None:
        work.models.append(self.size.parameters)
        lora = self.adapter_of(stage.model) or stage.lora
        work.full = lora is None
        work.packed += not work.full
        work.wide = self.size.parameters if work.full else 0
        work.steps_each_batch = self._steps_each_batch(stage)
        work.trainable = self.size.parameters if lora is None else self.size.adapter(lora)
        work.parameters = self.size.parameters + (0 if lora is None else work.trainable)

    def _steps_each_batch(self, stage: Any) -> bool:
        """Whether a training batch is a step by itself, and its gradients are nobody else's."""
        alone = not trains_on_several(self.recipe.resources, stage)
        batch = stage.even_batch()
        return stage.steps_planned() is None and batch is not None and batch[1] == 1 and alone

    def _beginning(self) -> float:
        """Tokens that all rows of a batch begin with and that are computed once for all of them."""
        return self.texts.beginning if self.size.shares_prefixes else 0

    def _shared(self, rows: Sequence[float]) -> list[float]:
        """Tokens that each row adds to a batch's common beginning."""
        return [row - self.texts.beginning for row in rows] if self.size.shares_prefixes else list(rows)

    def training_pass(
        self, stage: Any, rows: Sequence[float], answers: Sequence[float], repeats: float, **options: Any
    ) -> Pass:
        """Training passes over rows (tokens to compute each), ``repeats`` times, in the stage's batches."""
        own, beginning = self._shared(rows), self.texts.beginning if self.size.shares_prefixes else 0
        batches = math.ceil(len(rows) * repeats / stage.batch_size) if rows else 0
        most = beginning + largest_batch(own, stage.batch_size) if rows else 0.0
        mean = sum(rows) / len(rows) if rows else 0.0
        return Pass(
            tokens=sum(own) * repeats + batches * beginning,
            answers=sum(answers) * repeats,
            batches=batches,
            length=min(most, NODES) if self.size.shares_prefixes else mean,
            batch_tokens=most,
            batch_answers=largest_batch(answers, stage.batch_size),
            **{"trains": True, "checkpointed": stage.gradient_checkpointing} | options,
        )

    def sft(self, work: StageWork, stage: SftStage) -> None:
        self.train_policy(work, stage)
        rows = self.texts.demonstrations
        if stage.demonstrations is not None:
            rows, work.at_most = made_demonstrations(self, self.recipe.stages[stage.demonstrations]), True
        kept = [(min(whole, stage.max_length), answer) for whole, answer in rows.lengths]
        repeats = rows.scale * stage.epochs
        wholes = [whole for whole, _answer in kept]
        work.activities.append(self.training_pass(stage, wholes, [answer for _whole, answer in kept], repeats))
        work.trained = sum(wholes) * repeats
        if work.full:
            best = CHINCHILLA * self.size.parameters
            work.remarks.append(
                f"a model of {self.size.parameters:,} parameters trained from nothing would be compute-optimal at "
                f"{best:,} tokens ({CHINCHILLA} per parameter, Hoffmann et al. 2022); here are {work.trained:,.0f}"
            )

    def pairs(self, stage: Any) -> tuple[TokenLengths, bool]:
        """The pairs that a stage reads, and whether their number and lengths are bounds."""
        source = self.recipe.stages[stage.preferences]
        if "preferences" in source.spec.data:
            return self.texts.pairs, False
        return made_pairs(self, source), True

    def _pair_rows(self, pairs: Sequence[Pair], longest: int) -> list[float]:
        """Tokens to compute for each pair: the prompt once where beginnings are shared."""
        twice = 0 if self.size.shares_prefixes else 1
        rows = [min(p.prompt + p.chosen, longest) + min(p.prompt + p.rejected, longest) for p in pairs]
        return [row - (0 if twice else min(p.prompt, longest)) for row, p in zip(rows, pairs, strict=True)]

    def reward(self, work: StageWork, stage: Any, shown: Callable[[Pair], Pair] = lambda pair: pair) -> None:
        """A reward model's training and measure; ``shown`` says what it is shown of a pair."""
        size = self.size
        parameters = size.trunk + size.hidden  # and a score head of one output
        work.models.append(parameters)
        work.full = stage.lora is None
        work.wide = parameters if work.full else 0
        work.steps_each_batch = self._steps_each_batch(stage)
        work.trainable = parameters if stage.lora is None else size.adapter(stage.lora) + size.hidden
        work.parameters = parameters + (0 if stage.lora is None else work.trainable)
        pairs, work.at_most = self.pairs(stage)
        kept = [p for p in map(shown, pairs.lengths) if p.prompt + max(p.chosen, p.rejected) <= stage.max_length]
        # A file's pairs are split already; of raters' pairs this stage holds some out itself, and measures on them.
        share = 1.0 if not work.at_most else 1 - self.recipe.data.held_out
        rows, none = self._pair_rows(kept, stage.max_length), [0.0] * len(kept)
        work.activities.append(self.training_pass(stage, rows, none, pairs.scale * share * stage.epochs))
        work.trained = sum(2 * p.prompt + p.chosen + p.rejected for p in kept) * pairs.scale * share * stage.epochs
        held_out = self.texts.held_out_pairs if not work.at_most else pairs
        unseen = 1.0 if not work.at_most else self.recipe.data.held_out
        rows = self._pair_rows(list(map(shown, held_out.lengths)), stage.max_length)
        none = [0.0] * len(rows)
        work.activities.append(self.training_pass(stage, rows, none, held_out.scale * unseen, trains=False))

    def dpo(self, work: StageWork, stage: DpoStage) -> None:
        self.train_policy(work, stage)
        self.hold_dpo_reference(work, stage, moves=stage.refresh_reference is not None)
        once = work.parts == 1 and self.recipe.model.dtype == "float32" and stage.refresh_reference is None
        self._train_on_pairs(work, stage, 1 if once else stage.epochs)

    def hold_dpo_reference(self, work: StageWork, stage: Any, *, moves: bool) -> None:
        """Holds the reference of DPO or KTO; one that ``moves`` is held while the policy trains."""
        if self.adapter_of(stage.model) is not None:
            work.adapters += work.trainable  # the reference: a frozen copy of the adapter that training starts from
        elif work.full and work.parts > 1:  # its log-probabilities are computed while the policy trains
            work.models.append(self.size.parameters)
            work.divided, work.wide = 2, 2 * work.wide
        elif work.full and moves:
            work.models.append(self.size.parameters)
            work.wide *= 2
        elif work.full:  # in bfloat16 as well (alignment/stages/dpo.py)
            work.narrow_models.append(self.size.parameters)

    def reference_free(self, work: StageWork, stage: Any) -> None:
        """SimPO and ORPO: DPO without its reference."""
        self.train_policy(work, stage)
        self._train_on_pairs(work, stage, 0)

    def _train_on_pairs(self, work: StageWork, stage: Any, reference_passes: float) -> None:
        pairs, work.at_most = self.pairs(stage)
        kept = [p for p in pairs.lengths if p.prompt < stage.max_length]
        rows = self._pair_rows(kept, stage.max_length)
        answers: list[float] = [
            sum(min(answer, stage.max_length - p.prompt) for answer in (p.chosen, p.rejected)) for p in kept
        ]
        if reference_passes:
            passes = self.training_pass(stage, rows, answers, pairs.scale * reference_passes, trains=False)
            work.activities.append(passes)
        work.activities.append(self.training_pass(stage, rows, answers, pairs.scale * stage.epochs))
        whole = (2 * min(p.prompt, stage.max_length) + a for p, a in zip(kept, answers, strict=True))
        work.trained = sum(whole) * pairs.scale * stage.epochs

    def draw_turns(
        self, work: StageWork, stage: Any, lengths: Sequence[int], scale: float, rows: int, batch: int
    ) -> None:
        """Sampling by a stage: one answer a row, or with an environment as many turns as an episode may have.

        Every turn reads the conversation anew, which grows to its longest by the last.
        """
        new, environment = stage.sampling.max_new_tokens, stage.environment_used()
        work.activities.append(self.draw(lengths, scale, rows, batch, new))
        if environment is None:
            return
        drawn, episodes = min(new, environment.max_tokens), len(lengths) * scale * rows
        for turn in range(1, environment.max_turns):
            told = max(0, environment.max_tokens - drawn) * turn // (environment.max_turns - 1)
            read = sum(length + told for length in lengths) * scale * rows
            work.activities.append(SamplingPass(episodes, batch, drawn, read, max(lengths, default=0) + told))
        work.remarks.append(
            f"an episode is counted at its longest: {environment.max_turns} answers, {environment.max_tokens} tokens"
        )

    def draw(self, prompts: Sequence[int], scale: float, per_prompt: int, batch: int, new: int) -> SamplingPass:
        rows = len(prompts) * scale * per_prompt
        return SamplingPass(rows, batch, new, sum(prompts) * scale, max(prompts, default=0))

    def scored(self, rows: float, lengths: Sequence[int], new: int, batch: int) -> Pass:
        """A reward model's reading of ``rows`` prompts and answers."""
        mean, longest = sum(lengths) / max(1, len(lengths)) + new, max(lengths, default=0) + new
        return Pass(rows * mean, 0, math.ceil(rows / batch), mean, min(rows, batch) * longest, 0)

    def hold_reward_models(self, work: StageWork, stage: Any) -> int:
        """Holds a stage's reward models; returns how many there are."""
        named = [stage.reward_model_used()] if stage.reward_model_used() is not None else []
        rewards = [reward for reward in stage.rewards_used() if isinstance(reward, ModelReward)]
        here = [reward for reward in rewards if reward.held_here()]
        named += [reward.model or reward.folder or reward.hub for reward in here]
        named += [name for one in stage.rewards_used() if isinstance(one, EnsembleReward) for name in one.models]
        if any(reward.model is None for reward in here):
            work.remarks.append("a reward model from outside is counted as if it were of the base's size")
        if len(here) < len(rewards):
            work.remarks.append("a server scores its answers")
        work.models += [self.size.trunk + self.size.hidden] * len(named)
        return len(named)

    def hold_policies(self, work: StageWork, names: Sequence[str]) -> None:
        """Holds the base once, each adapter on it, and each policy of whole weights."""
        whole = [name for name in dict.fromkeys(names) if self.is_whole(name)]
        loras = [lora for name in dict.fromkeys(names) if (lora := self.adapter_of(name)) is not None]
        work.adapters += sum(self.size.adapter(lora) for lora in loras)
        based = len(whole) < len(set(names))
        work.models += [self.size.parameters] * (len(whole) + based)
        work.packed += based
        work.parameters = max(work.parameters, self.size.parameters + work.adapters)

    def sample(self, work: StageWork, stage: SampleStage) -> None:
        self.hold_policies(work, [stage.model])
        prompts, new = self.texts.prompts, stage.sampling.max_new_tokens
        count = min(prompts.count, stage.limit or prompts.count)
        scale = count / max(1, len(prompts.lengths))
        candidates = stage.per_prompt * stage.best_of
        draw = self.draw(prompts.lengths, scale, max(candidates, stage.sampling.beams), stage.batch_size, new)
        work.activities.append(draw)
        if self.hold_reward_models(work, stage):
            work.activities.append(self.scored(draw.rows, prompts.lengths, new, 32))
        work.sampled, work.at_most = count * stage.per_prompt * new, True

    def _online(self, work: StageWork, stage: Any) -> tuple[list[int], float]:
        """What PPO, GRPO and RLOO share: the policy, its prompts, sampling and scoring. Returns prompts and rows."""
        self.train_policy(work, stage)
        work.at_most = True
        lengths = [length for length in self.texts.prompts.lengths if length <= stage.max_prompt_length]
        new, rows = stage.longest_answer(), float(stage.steps * stage.episodes)
        scale = rows / stage.per_prompt / max(1, len(lengths))
        self.draw_turns(work, stage, lengths, scale, stage.per_prompt, ENGINE_BATCH)
        for _ in range(self.hold_reward_models(work, stage)):
            work.activities.append(self.scored(rows, lengths, new, 32))
        for reward in judge_rewards(stage):
            judge_online(self, work, reward, rows, lengths, new)
        work.sampled = rows * new if lengths else 0.0
        work.trained = stage.epochs * rows * (sum(lengths) / max(1, len(lengths)) + new)
        return lengths, rows

    def _hold_beside(self, work: StageWork, parameters: int) -> None:
        """A model that is divided among the workers where the policy is."""
        work.models.insert(work.divided if work.parts > 1 else len(work.models), parameters)
        work.divided += work.parts > 1

    def _hold_reference(self, work: StageWork, stage: Any) -> None:
        if work.full:
            self._hold_beside(work, self.size.parameters)
        elif self.adapter_of(stage.model) is not None:
            work.adapters += work.trainable

    def ppo(self, work: StageWork, stage: PpoStage) -> None:
        lengths, rows = self._online(work, stage)
        work.masters, work.wide = work.full, 0
        self._hold_reference(work, stage)
        critics = 0 if stage.critic == "shared" else 1
        if critics:
            self._hold_beside(work, self.size.trunk)
            work.critics = critics
            work.parameters += self.size.trunk
            work.trainable += self.size.trunk if work.full else self.size.adapter(stage.lora or Lora())
        work.trainable += self.size.hidden + 1  # the value head
        work.parameters += self.size.hidden + 1
        new = stage.sampling.max_new_tokens
        mean, longest = sum(lengths) / max(1, len(lengths)) + new, max(lengths, default=0) + new
        size = min(stage.batch_size, stage.episodes // stage.minibatches)
        own, beginning = mean - self._beginning(), self._beginning()
        for _ in range(2 + critics):  # the policy before its update, and the reference
            tokens = rows * own + rows / size * beginning
            work.activities.append(Pass(tokens, rows * new, rows / size, mean, size * longest, size * new))
        repeats = rows * stage.epochs
        options = {"trains": True, "checkpointed": stage.gradient_checkpointing, "autocast": False}
        for critic in range(1 + critics):
            seen = 0 if critic else new
            most = size * longest * (1 + critics)  # both trunks' activations wait for one backward pass
            tokens = repeats * own + repeats / size * beginning
            work.activities.append(Pass(tokens, repeats * seen, repeats / size, mean, most, size * seen, **options))
        if stage.raters is not None:
            held_out = self.texts.held_out_prompts.lengths[: stage.watch_prompts]
            times = 1 + stage.steps // stage.watch_every
            work.activities += [self.draw(held_out, 1, 1, ENGINE_BATCH, new)] * times

    def group(self, work: StageWork, stage: GrpoStage | RlooStage) -> None:
        lengths, rows = self._online(work, stage)
        work.masters, work.wide = work.full, 0
        new = stage.longest_answer() or 0
        wholes = [float(length + new) for length in lengths]
        scale = rows / max(1, len(lengths))
        answers = [float(new)] * len(wholes)
        if stage.beta > 0:
            self._hold_reference(work, stage)
        # The policy's own log-probabilities come first where the pass that trains is not the step's only one.
        for _ in range(int(not stage.trains_first()) + int(stage.beta > 0)):
            work.activities.append(self.training_pass(stage, wholes, answers, scale, trains=False, autocast=False))
        work.activities.append(self.training_pass(stage, wholes, answers, scale * stage.epochs, autocast=False))

    def measure_kl(
        self, work: StageWork, asked: Sequence[int], prompts: int, per_prompt: int, batch: int, new: int
    ) -> None:
        """Answers at temperature 1, and both models' reading of them, a batch at a time."""
        work.activities.append(self.draw(asked, prompts / max(1, len(asked)), per_prompt, batch, new))
        mean, longest = sum(asked) / max(1, len(asked)) + new, max(asked, default=0) + new
        rows = 2 * prompts * per_prompt
        together = min(batch, prompts * per_prompt)
        batches = 2 * math.ceil(prompts * per_prompt / batch)
        # The head reads a few positions at a time, whatever the batch.
        work.activities.append(Pass(rows * mean, rows * new, batches, mean, together * longest, new))

    def programs(self, work: StageWork, stage: Any) -> None:
        work.remarks.append("no model is loaded: programs read and compare texts, in seconds")

    def people(self, work: StageWork, stage: Any) -> None:
        votes = stage.pairs * stage.votes_per_comparison
        work.remarks.append(
            f"people judge {stage.pairs} pairs or more, {votes} votes; the run takes no compute meanwhile"
        )


WORK: dict[str, Callable[[Planner, StageWork, Any], None]] = {  # what a stage of each kind does, by its settings
    "sft": Planner.sft,
    "sample": Planner.sample,
    "preferences": Planner.programs,
    "human_preferences": Planner.people,
    "preference_file": Planner.programs,
    "judge": judge_stage,
    "constitution": constitution,
    "synthesis": synthesis,
    "rejection_sampling": rejection_sampling,
    "reward": Planner.reward,
    "pair_classifier": pair_classifier,
    "dpo": Planner.dpo,
    "kto": kto,
    "simpo": Planner.reference_free,
    "orpo": Planner.reference_free,
    "ppo": Planner.ppo,
    "grpo": Planner.group,
    "rloo": Planner.group,
    "distil": distil,
    "quantise": quantise,
    "evaluate": evaluate,
    "benchmark": benchmark,
    "tournament": tournament,
    "overoptimisation": overoptimisation,
}
