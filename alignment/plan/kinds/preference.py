"""The work of preference training: DPO, SimPO and ORPO on pairs, KTO on single answers."""

from typing import Any

from alignment.plan.kinds.feedback import made_answers
from alignment.plan.work import StageWork
from alignment.recipe.stages.preference.dpo import DpoStage
from alignment.recipe.stages.preference.kto import KtoStage


def dpo(planner: Any, work: StageWork, stage: DpoStage) -> None:
    """The reference's passes once or with each batch, and training passes over every pair."""
    planner.train_policy(work, stage)
    hold_preference_reference(planner, work, stage, moves=stage.refresh_reference is not None)
    once = work.parts == 1 and planner.recipe.model.dtype == "float32" and stage.refresh_reference is None
    _train_on_pairs(planner, work, stage, 1 if once else stage.epochs)


def hold_preference_reference(planner: Any, work: StageWork, stage: Any, *, moves: bool) -> None:
    """Holds the reference of DPO or KTO; one that ``moves`` is held while the policy trains."""
    if planner.adapter_of(stage.model) is not None or planner.starts_apart(stage):
        work.adapters += work.trainable  # the reference: a frozen copy of the adapter that training starts from
    elif not work.full and not work.inside:
        pass  # the base with the adapter off
    elif work.parts > 1:  # its log-probabilities are computed while the policy trains
        work.models.append(planner.size.parameters)
        work.divided, work.wide = 2, 2 * work.wide
    elif moves:
        work.models.append(planner.size.parameters)
        work.wide *= 2
    else:  # in bfloat16 as well (alignment/stages/dpo.py)
        work.narrow_models.append(planner.size.parameters)


def reference_free(planner: Any, work: StageWork, stage: Any) -> None:
    """SimPO and ORPO: DPO without its reference."""
    planner.train_policy(work, stage)
    _train_on_pairs(planner, work, stage, 0)


def _train_on_pairs(planner: Any, work: StageWork, stage: Any, reference_passes: float) -> None:
    pairs, work.at_most = planner.pairs(stage)
    kept = [p for p in pairs.lengths if p.prompt < stage.max_length]
    rows = planner.pair_rows(kept, stage.max_length)
    answers: list[float] = [
        sum(min(answer, stage.max_length - p.prompt) for answer in (p.chosen, p.rejected)) for p in kept
    ]
    if reference_passes:
        passes = planner.training_pass(stage, rows, answers, pairs.scale * reference_passes, trains=False)
        work.activities.append(passes)
    work.activities.append(planner.training_pass(stage, rows, answers, pairs.scale * stage.epochs))
    whole = (2 * min(p.prompt, stage.max_length) + a for p, a in zip(kept, answers, strict=True))
    work.trained = sum(whole) * pairs.scale * stage.epochs


def kto(planner: Any, work: StageWork, stage: KtoStage) -> None:
    """The reference's passes once or with each batch, and training passes over every answer with its prompt."""
    planner.train_policy(work, stage)
    hold_preference_reference(planner, work, stage, moves=False)
    if stage.preferences is None:
        lengths = planner.texts.feedback
        if stage.feedback is not None:
            lengths, work.at_most = made_answers(planner, planner.recipe.stages[stage.feedback]), True
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
