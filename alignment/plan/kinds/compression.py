"""The work of the stages that make models smaller, and of those that bring what teaches them."""

from typing import Any

from alignment.plan.kinds.feedback import made_demonstrations
from alignment.plan.work import StageWork
from alignment.recipe.stages.compression.distil import DistilStage
from alignment.recipe.stages.compression.outside_model import OutsideModelStage
from alignment.recipe.stages.compression.quantise import QuantiseStage


def outside_model(_planner: Any, work: StageWork, stage: OutsideModelStage) -> None:
    """Copied files; what they take is known when they are there."""
    named = stage.version or stage.folder or stage.hub
    work.remarks.append(f"{named} is copied, and counted as large as the base where stages read it")


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


def distil(planner: Any, work: StageWork, stage: DistilStage) -> None:
    """Training passes of the student and as many of the teacher over the same rows, which are bounds on-policy.

    A student without some of its layers counts as large as it was.
    """
    planner.train_policy(work, stage)
    work.models.append(planner.size.parameters)
    rows = planner.texts.demonstrations
    if stage.demonstrations is not None:
        rows, work.at_most = made_demonstrations(planner, planner.recipe.stages[stage.demonstrations]), True
    repeats = rows.scale * stage.epochs
    if stage.source == "on_policy":
        prompts = [whole - answer for whole, answer in rows.lengths]
        new = stage.drawn_length()
        kept = [(prompt + new, new) for prompt in prompts if prompt + new <= stage.max_length]
        draw = planner.draw([whole - new for whole, _new in kept], repeats, 1, stage.batch_size, new)
        work.activities.append(draw)
        work.sampled, work.at_most = draw.rows * new, True
    else:
        kept = [(min(whole, stage.max_length), answer) for whole, answer in rows.lengths]
    wholes, answers = [float(whole) for whole, _answer in kept], [float(answer) for _whole, answer in kept]
    work.activities.append(planner.training_pass(stage, wholes, answers, repeats, trains=False))
    work.activities.append(planner.training_pass(stage, wholes, answers, repeats))
    work.trained = sum(wholes) * repeats
