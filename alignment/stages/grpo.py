"""The stages ``grpo`` and ``rloo``: answers that are compared with others to the same prompt.

Of a group's answers, those that score above the others become likelier. GRPO (Shao et al. 2024) divides by the group's
deviation and clips ratios of tokens; RLOO (Ahmadian et al. 2024) takes the mean of the others as the baseline and
weighs whole answers. Neither needs a critic, nor, at ``beta: 0``, a reference.
"""

import json

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from alignment.chat import render_prompt
from alignment.data.prompts import split_prompts
from alignment.distributed.fsdp import check_devices
from alignment.distributed.workers import Team
from alignment.durable_files import write_text
from alignment.environments.episodes import EpisodePlayer
from alignment.environments.process import environment_process
from alignment.errors import StageError
from alignment.models.adapters import is_adapter
from alignment.policy.grpo.experience import GroupExperience
from alignment.policy.grpo.metrics import sample_table
from alignment.policy.grpo.trainer import GroupTrainer
from alignment.policy.online.actor_critic import reference_of
from alignment.policy.online.episode_reward import EpisodeReward
from alignment.policy.online.trainer import Surroundings
from alignment.recipe.stages.grpo import GroupStage, GrpoStage, RlooStage
from alignment.records import Prompt
from alignment.reward.factory import build_rewards
from alignment.rollouts.factory import team_engine
from alignment.stage import Progress, StageContext, StageResult
from alignment.training.curves import curves_of_steps
from alignment.training.policy import TrainingOutcome, begin_policy
from alignment.training.row_counts import Counts, log_counts, sift_prompts


def run(settings: GrpoStage | RlooStage, context: StageContext) -> StageResult:
    """Trains ``settings.model`` on its rewards of its own answers to the training prompts.

    Raises StageError where no prompt is short enough, a reward model has another template, or training goes wrong.
    """
    check_devices(context)
    training = begin_policy(settings, context, reference=True, masters=False)
    policy, tokenizer, start = training.policy, training.tokenizer, training.start
    prompts, counts = training_prompts(settings, context, tokenizer)
    log_counts(context, counts)
    team = Team(context.rank, context.workers)
    environment = settings.environment
    reward = EpisodeReward(
        build_rewards(settings.rewards, context, tokenizer), team, settings.per_prompt,
        environment=None if environment is None else environment.weight,
    )  # fmt: skip
    player = None if environment is None else EpisodePlayer(environment_process(environment, context), tokenizer)
    adapter = start.path if isinstance(policy, PeftModel) and is_adapter(start) else None
    trainer = GroupTrainer(
        settings,
        policy=policy,
        reference=reference_of(policy, adapter, sharded=context.sharded) if settings.beta else None,
        engine=team_engine(settings, context, policy, tokenizer),
        reward=reward,
        prompts=[(prompt, tuple(render_prompt(tokenizer, prompt.messages))) for prompt in prompts],
        around=Surroundings(
            seed=context.run.seed,
            checkpoints=context.checkpoints,
            team=team,
            sharded=context.sharded,
            preempted=context.preempted,
            saved=context.saved,
            other_engine=context.run.resources.vllm is not None,
            player=player,
            name=context.name,
        ),
    )
    updates = settings.epochs * settings.minibatches
    tables = context.checkpoints / "samples"  # not in the output, which a restart begins anew

    def on_step(step: int, metrics: dict[str, float], experience: GroupExperience) -> None:
        state = trainer.state
        tokens = state.tokens_sampled + state.tokens_trained
        context.report(Progress(step * updates, settings.steps * updates, metrics, tokens))
        due = step == 1 or step % settings.checkpoint_every == 0 or step == settings.steps
        if due and context.rank == 0:
            table = json.dumps(sample_table(experience, reward.scores), indent=1, ensure_ascii=False)
            write_text(tables / f"step-{step:06d}.json", table)
        training.snapshots.take(policy, step)

    with context.working():
        state = trainer.train(on_step=on_step)
    if player is not None:
        player.environment.close()
    history = [untimed(metrics) for metrics in state.history]
    curves = curves_of_steps((step * updates, metrics) for step, metrics in enumerate(history, start=1))
    figures = {
        "mean_loss": sum(metrics["loss"] for metrics in history) / len(history),
        "prompts": float(len(prompts)),
        "alarms": float(len(state.alarms)),
    }
    outcome = TrainingOutcome(
        curves, figures | counts, state.tokens_trained, state.tokens_sampled, {"alarms.json": state.alarms}, tables
    )
    return training.finish(policy, outcome)


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    """A step's figures without those that differ from run to run of the same seed."""
    return {name: value for name, value in metrics.items() if "second" not in name}


def training_prompts(
    settings: GroupStage, context: StageContext, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Prompt], Counts]:
    """The training prompts that are short enough, and how many rows are left out. Raises StageError where none is."""
    split = split_prompts(context.data["prompts"], context.run.held_out)
    longest = settings.max_prompt_length
    fitting, counts = sift_prompts(split.train, tokenizer, longest, split.duplicates)
    if not fitting:
        raise StageError(f"none of {len(split.train)} training prompts is at most max_prompt_length={longest} tokens")
    return fitting, counts
