"""From a recipe's stage and its texts to its work: one function for each kind of stage.

Answers that are yet to be drawn count at their longest, and pairs that raters are yet to make at their most.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from alignment.plan.kinds.compression import distil, quantise
from alignment.plan.kinds.experiments import benchmark, evaluate, overoptimisation, tournament
from alignment.plan.kinds.feedback import constitution, made_demonstrations, made_pairs, rejection_sampling, synthesis
from alignment.plan.kinds.judges import judge_stage, pair_classifier
from alignment.plan.kinds.online import group, ppo
from alignment.plan.kinds.preference import dpo, kto, reference_free
from alignment.plan.kinds.pretraining import CHINCHILLA, pretrain, tokenizer
from alignment.plan.sizes import ModelSize
from alignment.plan.texts import Pair, Texts, TokenLengths
from alignment.plan.work import Pass, SamplingPass, StageWork, largest_batch
from alignment.recipe.base import BASE, AdapterSettings
from alignment.recipe.graph import trains_on_several, workers_of
from alignment.recipe.recipe import Recipe
from alignment.recipe.rewards.reward_models import EnsembleReward, ModelReward
from alignment.recipe.stages.sample import SampleStage
from alignment.recipe.stages.sft import SftStage

NODES = 512  # of a batch's tree, which attend to each other (alignment/models/prefix_sharing.py, which imports torch)


class Planner:
    """Knows a recipe, its model's size and its texts; :meth:`work` gives a stage's."""

    def __init__(
        self,
        recipe: Recipe,
        size: ModelSize,
        texts: Texts,
        encoders: Mapping[str, tuple[ModelSize, Texts]] = MappingProxyType({}),
    ) -> None:
        self.recipe, self.size, self.texts = recipe, size, texts
        self.encoders = {name: Planner(recipe, *encoder) for name, encoder in encoders.items()}

    def size_of(self, name: str) -> ModelSize:
        """The size of the model that a stage works on: the base's, or its encoder's."""
        return self.encoders[name].size if name in self.encoders else self.size

    def work(self, name: str, stage: Any | None = None) -> StageWork:
        """The work of the recipe's stage ``name``, or of ``stage`` in its place."""
        settings = self.recipe.stages[name] if stage is None else stage
        work = StageWork(name, settings.kind, scheme=self.recipe.model.quantise)
        if self.recipe.resources.sharding != "none" and trains_on_several(self.recipe.resources, settings):
            work.parts = workers_of(self.recipe.resources, settings)
        WORK[settings.kind](self.encoders.get(name, self), work, settings)
        return work

    def adapter_of(self, name: str) -> AdapterSettings | None:
        """The adapter of the policy that a stage makes: an adapter is trained on, whatever the next stage says."""
        stage = self.recipe.stages.get(name)
        if stage is None or "policy" not in stage.spec.makes or stage.quantises() is not None or stage.makes_base():
            return None
        if stage.adapter_trained() is None and stage.removes_layers() is not None:
            return None  # its weights are its own, whatever it began as
        start = stage.inputs()["policies" if stage.evaluates() else "model"][0]  # a tournament's are mostly alike
        return self.adapter_of(start) or stage.adapter_trained()

    def is_whole(self, name: str) -> bool:
        """Whether a policy has weights of its own, and is not what ``base`` is."""
        stage = self.recipe.stages.get(name)
        return name != BASE and not (stage is not None and stage.makes_base()) and self.adapter_of(name) is None

    def train_policy(self, work: StageWork, stage: Any) -> None:
        work.models.append(self.size.parameters)
        part = self.adapter_of(stage.model) or stage.trained_part()
        work.full, work.inside = part is None, part is not None and not part.keeps_base()
        work.packed += not work.full
        work.wide = self.size.parameters if work.full or work.inside else 0
        work.steps_each_batch = self._steps_each_batch(stage)
        work.trainable = self.size.parameters if part is None else self.size.trained(part)
        work.parameters = self.size.parameters + (0 if work.full or work.inside else work.trainable)

    def train_whole(self, work: StageWork, stage: Any) -> None:
        """Holds a model of which all weights are trained."""
        parameters = self.size.parameters
        work.models.append(parameters)
        work.full = True
        work.parameters = work.trainable = work.wide = parameters
        work.steps_each_batch = self._steps_each_batch(stage)

    def _steps_each_batch(self, stage: Any) -> bool:
        """Whether a training batch is a step by itself, and its gradients are nobody else's."""
        alone = not trains_on_several(self.recipe.resources, stage)
        batch = stage.even_batch()
        return stage.steps_planned() is None and batch is not None and batch[1] == 1 and alone

    def beginning(self) -> float:
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

    def pair_rows(self, pairs: Sequence[Pair], longest: int) -> list[float]:
        """Tokens to compute for each pair: the prompt once where beginnings are shared."""
        twice = 0 if self.size.shares_prefixes else 1
        rows = [min(p.prompt + p.chosen, longest) + min(p.prompt + p.rejected, longest) for p in pairs]
        return [row - (0 if twice else min(p.prompt, longest)) for row, p in zip(rows, pairs, strict=True)]

    def reward(self, work: StageWork, stage: Any, shown: Callable[[Pair], Pair] = lambda pair: pair) -> None:
        """A reward model's training and measure; ``shown`` says what it is shown of a pair."""
        size = self.size
        parameters = size.scoring
        work.models.append(parameters)
        part = stage.trained_part()
        work.full, work.inside = part is None, part is not None and not part.keeps_base()
        work.wide = parameters if work.full or work.inside else 0
        work.steps_each_batch = self._steps_each_batch(stage)
        work.trainable = parameters if part is None else size.trained(part) + size.score_head
        work.parameters = parameters + (0 if work.full or work.inside else work.trainable)
        pairs, work.at_most = self.pairs(stage)
        longest = min(stage.max_length, size.longest or stage.max_length)
        whole = [self._cut(shown(pair), longest) for pair in pairs.lengths]
        kept = [p for p in whole if p.prompt + max(p.chosen, p.rejected) <= longest]
        # A file's pairs are split already; of raters' pairs this stage holds some out itself, and measures on them.
        share = 1.0 if not work.at_most else 1 - self.recipe.data.held_out
        rows, none = self.pair_rows(kept, longest), [0.0] * len(kept)
        work.activities.append(self.training_pass(stage, rows, none, pairs.scale * share * stage.epochs))
        work.trained = sum(2 * p.prompt + p.chosen + p.rejected for p in kept) * pairs.scale * share * stage.epochs
        held_out = self.texts.held_out_pairs if not work.at_most else pairs
        unseen = 1.0 if not work.at_most else self.recipe.data.held_out
        rows = self.pair_rows([self._cut(shown(pair), longest) for pair in held_out.lengths], longest)
        none = [0.0] * len(rows)
        work.activities.append(self.training_pass(stage, rows, none, held_out.scale * unseen, trains=False))

    def _cut(self, pair: Pair, longest: int) -> Pair:
        """A pair whose prompt is cut to what its answers leave of ``longest`` tokens, where an encoder reads it."""
        if self.size.own_head is None:
            return pair
        return replace(pair, prompt=min(pair.prompt, max(0, longest - max(pair.chosen, pair.rejected))))

    def starts_apart(self, stage: Any) -> bool:
        """Whether a fresh adapter is another model than the base, and a frozen copy of it the reference."""
        part = stage.trained_part()
        return part is not None and not part.starts_as_base()

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
        if any(name in self.encoders for name in named):
            work.remarks.append(
                "the time of an encoder's reading, not its memory, is counted as if it were of the base's size"
            )
        work.models += [self.size_of(name or "").scoring for name in named]
        return len(named)

    def hold_policies(self, work: StageWork, names: Sequence[str]) -> None:
        """Holds the base once, each adapter on it, and each policy of whole weights."""
        whole = [name for name in dict.fromkeys(names) if self.is_whole(name)]
        parts = [part for name in dict.fromkeys(names) if (part := self.adapter_of(name)) is not None]
        work.adapters += sum(self.size.trained(part) for part in parts)
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
    "tokenizer": tokenizer,
    "pretrain": pretrain,
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
    "dpo": dpo,
    "kto": kto,
    "simpo": reference_free,
    "orpo": reference_free,
    "ppo": ppo,
    "grpo": group,
    "rloo": group,
    "distil": distil,
    "quantise": quantise,
    "evaluate": evaluate,
    "benchmark": benchmark,
    "tournament": tournament,
    "overoptimisation": overoptimisation,
}
