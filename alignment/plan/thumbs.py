"""The work of KTO: answers with their prompts, and the mismatched answers by which it estimates the KL."""

from typing import Any

from alignment.plan.work import StageWork
from alignment.recipe.stages.preference.kto import KtoStage


def kto(planner: Any, work: StageWork, stage: KtoStage) -> None:
    """The reference's passes once or with each batch, and training passes over every answer with its prompt."""
    planner.train_policy(work, stage)
    planner.hold_dpo_reference(work, stage, moves=False)
    if stage.preferences is None:
        lengths = planner.texts.feedback
        answers, scale = list(lengths.lengths), lengths.scale
    else:
        pairs, work.at_most = planner.pairs(stage)
        answers = [(pair.prompt, answer) for pair in pairs.lengths for answer in (pair.chosen, pair.rejected)]
        scale = pairs.scale
    kept = [(prompt, min(answer, stage.max_length - prompt)) for prompt, answer in answers if prompt < stage.max_length]
    rows, new = [float(prompt + answer) for prompt, answer in kept], [float(answer) for _prompt, answer in kept]
    passes = 2 if stage.estimates_kl() else 1  # the mismatched answers are as many, and as long, as the others
    once = work.parts == 1 and planner.recipe.model.dtype == "float32"
    reference = scale * passes * (1 if once else stage.epochs)
    work.activities.append(planner.training_pass(stage, rows, new, reference, trains=False))
    if stage.estimates_kl():
        work.activities.append(planner.training_pass(stage, rows, new, scale * stage.epochs, trains=False))
    work.activities.append(planner.training_pass(stage, rows, new, scale * stage.epochs))
    work.trained = sum(rows) * scale * stage.epochs
