"""The work of reinforcement learning: PPO with its critic, and the group methods GRPO and RLOO."""

from typing import Any

from alignment.plan.kinds.judges import judge_online
from alignment.plan.work import ENGINE_BATCH, Pass, StageWork
from alignment.recipe.base import Lora
from alignment.recipe.graph import judge_rewards
from alignment.recipe.stages.grpo import GrpoStage, RlooStage
from alignment.recipe.stages.ppo import PpoStage


def _online(planner: Any, work: StageWork, stage: Any) -> tuple[list[int], float]:
    """What PPO, GRPO and RLOO share: the policy, its prompts, sampling and scoring. Returns prompts and rows."""
    planner.train_policy(work, stage)
    work.at_most = True
    lengths = [length for length in planner.texts.prompts.lengths if length <= stage.max_prompt_length]
    new, rows = stage.longest_answer(), float(stage.steps * stage.episodes)
    scale = rows / stage.per_prompt / max(1, len(lengths))
    planner.draw_turns(work, stage, lengths, scale, stage.per_prompt, ENGINE_BATCH)
    for _ in range(planner.hold_reward_models(work, stage)):
        work.activities.append(planner.scored(rows, lengths, new, 32))
    for reward in judge_rewards(stage):
        judge_online(planner, work, reward, rows, lengths, new)
    work.sampled = rows * new if lengths else 0.0
    work.trained = stage.epochs * rows * (sum(lengths) / max(1, len(lengths)) + new)
    return lengths, rows


def _hold_beside(work: StageWork, parameters: int) -> None:
    """A model that is divided among the workers where the policy is."""
    work.models.insert(work.divided if work.parts > 1 else len(work.models), parameters)
    work.divided += work.parts > 1


def _hold_reference(planner: Any, work: StageWork, stage: Any) -> None:
    if work.full or work.inside:
        _hold_beside(work, planner.size.parameters)
    elif planner.adapter_of(stage.model) is not None or planner.starts_apart(stage):
        work.adapters += work.trainable


def ppo(planner: Any, work: StageWork, stage: PpoStage) -> None:
    """Answers, both models' reading of them, and training passes of policy and critic."""
    lengths, rows = _online(planner, work, stage)
    work.masters, work.wide = work.full or work.inside, 0
    _hold_reference(planner, work, stage)
    critics = 0 if stage.critic == "shared" else 1
    if critics:
        _hold_beside(work, planner.size.trunk)
        work.critics = critics
        work.parameters += planner.size.trunk
        work.trainable += planner.size.trunk if work.full else planner.size.adapter(stage.lora or Lora())
    work.trainable += planner.size.hidden + 1  # the value head
    work.parameters += planner.size.hidden + 1
    new = stage.sampling.max_new_tokens
    mean, longest = sum(lengths) / max(1, len(lengths)) + new, max(lengths, default=0) + new
    size = min(stage.batch_size, stage.episodes // stage.minibatches)
    own, beginning = mean - planner.beginning(), planner.beginning()
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
        held_out = planner.texts.held_out_prompts.lengths[: stage.watch_prompts]
        times = 1 + stage.steps // stage.watch_every
        work.activities += [planner.draw(held_out, 1, 1, ENGINE_BATCH, new)] * times


def group(planner: Any, work: StageWork, stage: GrpoStage | RlooStage) -> None:
    """Answers, the passes that only read them, and training passes."""
    lengths, rows = _online(planner, work, stage)
    work.masters, work.wide = work.full or work.inside, 0
    new = stage.longest_answer() or 0
    wholes = [float(length + new) for length in lengths]
    scale = rows / max(1, len(lengths))
    answers = [float(new)] * len(wholes)
    if stage.beta > 0:
        _hold_reference(planner, work, stage)
    # The policy's own log-probabilities come first where the pass that trains is not the step's only one.
    for _ in range(int(not stage.trains_first()) + int(stage.beta > 0)):
        work.activities.append(planner.training_pass(stage, wholes, answers, scale, trains=False, autocast=False))
    work.activities.append(planner.training_pass(stage, wholes, answers, scale * stage.epochs, autocast=False))
