"""The work of the stages that make models smaller."""

from typing import Any

from alignment.plan.work import StageWork
from alignment.recipe.stages.compression.quantise import QuantiseStage


def quantise(planner: Any, work: StageWork, stage: QuantiseStage) -> None:
    """Greedy answers of the policy and of the export, and both models' reading of the policy's.

    The export counts as large as the policy: what an unpacked GGUF file is, and the most that any scheme takes.
    """
    work.models += [planner.size.parameters] * 2
    work.parameters = planner.size.parameters
    asked = planner.texts.asked_prompts
    count, new = min(asked.count, stage.limit), stage.max_new_tokens
    scale = count / max(1, len(asked.lengths))
    for _ in range(2):
        work.activities.append(planner.draw(asked.lengths, scale, 1, stage.batch_size, new))
        work.activities.append(planner.scored(count, asked.lengths, new, stage.batch_size))
    work.sampled, work.at_most = 2 * count * new, True
    work.remarks.append("no calibration data is read: each scheme rounds weights as they are")
