"""What GRPO and RLOO say while they train: tables of answers, and alarms for the ways in which they go wrong."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from alignment.durable_files import write_text
from alignment.policy.grpo.trainer import Rollouts
from alignment.policy.ppo.metrics import WINDOW, alarms
from alignment.policy.ppo.score_scale import ScoreScale
from alignment.recipe.stages.grpo import GroupStage
from alignment.stage import StageContext
from alignment.training.callback import StageCallback

SHOWN = 8  # answers in each sample table
SCALE = "score_scale.json"  # in a checkpoint: what penalties are measured in
_log = logging.getLogger(__name__)


class GroupCallback(StageCallback):
    """The callback of every stage, and beside it a table of answers now and then, and alarms in the log."""

    def __init__(self, context: StageContext, settings: GroupStage, rollouts: Rollouts, tables: Path) -> None:
        super().__init__(context)
        self.settings, self.rollouts, self.tables = settings, rollouts, tables
        self._raised: set[str] = set()
        self.updates = rollouts.updates_per_step  # answers are in no checkpoint

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **more: Any
    ) -> None:
        """Called by the trainer once it has loaded its checkpoint."""
        super().on_train_begin(args, state, control, model, **more)
        if self.resumed is not None:
            self.rollouts.scale = ScoreScale(**json.loads((Path(self.resumed) / SCALE).read_text("utf-8")))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Called by the trainer once a checkpoint is written."""
        if self.context.rank == 0:
            scale = json.dumps(asdict(self.rollouts.scale))  # floats as JSON come back bit for bit
            write_text(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / SCALE, scale)
        super().on_save(args, state, control, **more)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Called by the trainer after each step with that step's metrics."""
        if "reward" in (logs or {}) and self.context.rank == 0:
            self._say(state)
        super().on_log(args, state, control, logs)

    def _say(self, state: TrainerState) -> None:
        step = state.global_step // self.rollouts.updates_per_step
        if step == 1 or step % self.settings.checkpoint_every == 0 or step == self.settings.steps:
            table = json.dumps(sample_table(self.rollouts), indent=1, ensure_ascii=False)
            write_text(self.tables / f"step-{step:06d}.json", table)
        for alarm in group_alarms(history_of(state.log_history)):
            if (name := alarm.split(":")[0]) not in self._raised:
                self._raised.add(name)
                _log.warning("%s step %d: %s", self.context.name, step, alarm)


def sample_table(rollouts: Rollouts) -> list[dict[str, Any]]:
    """The first ``SHOWN`` answers of the newest step with their rewards, for the report."""
    totals = rollouts.rewards.total(rollouts.scores)
    return [
        {
            "prompt": answer.prompt.messages[-1].content,
            "answer": answer.text,
            "score": totals[row],
            "rewards": {name: scores[row] for name, scores in rollouts.scores.items()},
            "tokens": answer.tokens,
            "finished": answer.finished,
        }
        for row, answer in enumerate(rollouts.answers[:SHOWN])
    ]


def history_of(log: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The steps of a trainer's log as the monitor reads them; without a reference there is no KL to run away."""
    return [{"kl": 0.0, **row} for row in log if "reward" in row]


def group_alarms(history: Sequence[dict[str, float]]) -> list[str]:
    """PPO's alarms, and one of their own: where all answers to a prompt score the same, nothing is learned."""
    found = alarms(history)
    recent = history[-WINDOW:]
    if len(recent) == WINDOW and all(step["groups_without_spread"] >= 1 for step in recent):
        found.append(
            f"no_signal: all answers to each prompt have one reward ({recent[-1]['reward']:.3g} on average); "
            "give easier or harder prompts, or a reward with more steps"
        )
    return found


def all_alarms(log: Sequence[Mapping[str, float]]) -> list[str]:
    """Every alarm of a run when it was first raised, from its whole log: the same whether or not it was interrupted."""
    history = history_of(log)
    first: dict[str, str] = {}
    for step in range(1, len(history) + 1):
        for alarm in group_alarms(history[:step]):
            first.setdefault(alarm.split(":")[0], f"step {step}: {alarm}")
    return list(first.values())
