"""The stage ``judge``: responses → comparisons → a judge's votes, measured against raters → pairs to train on.

The verdicts are made in pieces (:mod:`alignment.judges.batches`), side by side where there are workers; what
was judged, or paid for, is kept, so a stage that was stopped asks nothing twice. Where the judge agrees too little with
the raters, the stage ends with what it measured in its message and publishes nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from alignment.data.jsonl import read_records, write_records
from alignment.data.text import words
from alignment.durable_files import write_text
from alignment.errors import StageError
from alignment.judges import calibration
from alignment.judges.batches import Verdicts, blocks_of, judge_all
from alignment.judges.calibration import Known, content_key
from alignment.judges.prompts import shots_of
from alignment.judges.protocol import JudgeCorrection, PairJudgement, votes_of
from alignment.judges.reference_raters import Raters, raters_of, turned
from alignment.judges.report import Figure, JudgeReport
from alignment.preferences.comparisons import make_comparisons
from alignment.preferences.consensus import consensus, preference_pairs
from alignment.recipe.judges import judge_digest, judge_models, judge_role, scores_alone
from alignment.recipe.stages.feedback.judge import JudgeStage
from alignment.records import Comparison, PreferencePair, Prompt, Response, Vote
from alignment.stage import Progress, StageContext, StageResult


def run(settings: JudgeStage, context: StageContext) -> StageResult:
    """Writes ``comparisons.jsonl``, ``judgements.jsonl``, ``votes.jsonl``, ``pairs.jsonl`` and ``judge.json``; where
    the judge is shown some of its examples, ``shots.jsonl`` too.

    Raises StageError where the judge cannot be asked, agrees too little with the raters, or leaves no pair.
    """
    comparisons = _comparisons(settings, context)
    raters = raters_of(settings, context)
    mine = {content_key(comparison): comparison for comparison in comparisons}
    # What raters compared and this stage does not, is judged as well: the judge is measured on all that they know.
    extra = [one.comparison for key, one in raters.known.items() if key not in mine]
    found = _judge(settings, [*comparisons, *extra], context)
    judged = found.judgements
    known = {
        comparison.id: turned(raters.known[key], comparison) for key, comparison in mine.items() if key in raters.known
    }
    known |= {comparison.id: raters.known[content_key(comparison)] for comparison in extra}
    correction = calibration.fit(judged, known, position=settings.correct_position)
    report = _report(settings, context, found, list(zip([*comparisons, *extra], judged, strict=True)), known, raters,
                     correction)  # fmt: skip
    _refuse(settings, context.name, report)
    votes = votes_of(_rater_name(context), comparisons, judged[: len(comparisons)], correction, settings.tie_margin)
    votes += raters.votes_on(mine)
    verdicts = consensus(comparisons, votes, settings.weights.by_kind())
    pairs = preference_pairs(verdicts, comparisons, settings.min_agreement)
    if not pairs:
        raise StageError(_why_no_pairs(comparisons, report))
    write_records(context.output / "comparisons.jsonl", comparisons)
    write_records(context.output / "judgements.jsonl", judged)
    write_records(context.output / "votes.jsonl", votes)
    write_records(context.output / "pairs.jsonl", pairs)
    if shots := shots_of(settings.judge, (comparison.prompt for comparison in (*comparisons, *extra))):
        write_records(context.output / "shots.jsonl", shots)
    write_text(context.output / "judge.json", report.model_dump_json(indent=1) + "\n")
    metrics = _metrics(report, comparisons, votes, pairs)
    return StageResult("preferences", metrics, tokens_sampled=found.tally.answer_tokens)


def _comparisons(settings: JudgeStage, context: StageContext) -> list[Comparison]:
    names = (settings.responses,) if isinstance(settings.responses, str) else settings.responses
    folders = [Path(context.inputs[name].path) for name in names]
    found = [prompt for folder in folders for prompt in read_records(folder / "prompts.jsonl", Prompt)]
    responses = [response for folder in folders for response in read_records(folder / "responses.jsonl", Response)]
    prompts = list({prompt.id: prompt for prompt in found}.values())
    comparisons = make_comparisons(prompts, responses, settings.comparisons_per_prompt, context.run.seed)
    if not comparisons:
        raise StageError(
            f"none of the prompts has two different answers among the {len(responses)} responses of "
            f"{', '.join(names)}; sample more responses per prompt (`per_prompt`), or at a higher temperature"
        )
    return comparisons


def _judge(settings: JudgeStage, comparisons: Sequence[Comparison], context: StageContext) -> Verdicts:
    """Every comparison's judgement; a block in which an endpoint failed is asked again next time."""
    done = unparsable = tokens = 0

    def heard(block: Verdicts) -> None:
        nonlocal done, unparsable, tokens
        done += len(block.judgements)
        unparsable += sum(one.unparsable for one in block.judgements)
        tokens += block.tally.answer_tokens
        context.report(Progress(done, len(comparisons), {"unparsable": float(unparsable)}, tokens))

    return judge_all(settings, context, blocks_of(comparisons), heard)


def _report(
    settings: JudgeStage,
    context: StageContext,
    found: Verdicts,
    pairs: Sequence[tuple[Comparison, PairJudgement]],
    known: dict[str, Known],
    raters: Raters,
    correction: JudgeCorrection,
) -> JudgeReport:
    judged = [judgement for _comparison, judgement in pairs]
    decided = [(comparison, correction.decision(judgement, settings.tie_margin)) for comparison, judgement in pairs]
    on_both = [(comparison, known[comparison.id].decision) for comparison, decision in decided
               if comparison.id in known and decision in ("left", "right")]  # fmt: skip
    agreed, kappa = calibration.agreement(pairs, known, correction, settings.tie_margin)
    errors = calibration.calibration_errors(judged, known, correction)
    models = judge_models(settings.judge) if judge_role(settings.judge) == "judge" else ()
    alone = scores_alone(settings.judge)  # there is no order to agree with
    own = str(context.inputs[models[0]].ref()) if models else None
    return JudgeReport(
        judge=found.judge,
        kind=settings.judge.kind,
        digest=judge_digest(settings.judge),
        correction=correction,
        calibrated=agreed.value is not None,
        raters=raters.who,
        pairs=sum(judgement.note != "unasked" for judgement in judged),
        agreement=agreed if agreed.value is not None else None,
        kappa=kappa if agreed.value is not None else None,
        ceiling=calibration.ceiling(list(known.values())),
        ece=errors[0],
        ece_uncorrected=errors[1],
        position_consistency=Figure(value=None) if alone else calibration.consistency(pairs, correction),
        position_consistency_uncorrected=Figure(value=None)
        if alone
        else calibration.consistency(pairs, JudgeCorrection()),
        position_bias=calibration.position_bias(judged),
        longer=calibration.longer_wins(decided),
        raters_longer=calibration.longer_wins(on_both),
        own=calibration.own_wins(decided, own),
        ties=sum(decision == "tie" for _comparison, decision in decided),
        unparsable=sum(judgement.unparsable for judgement in judged),
        failed=sum(judgement.note == "failed" for judgement in judged),
        unasked=sum(judgement.note == "unasked" for judgement in judged),
        suspect=sum(judgement.note == "suspect" for judgement in judged),
        tally=found.tally.figures(),
    )


def _refuse(settings: JudgeStage, name: str, report: JudgeReport) -> None:
    """Raises StageError where the judge agrees less with the raters than the recipe asks for."""
    if settings.min_kappa is None:
        return
    kappa = report.kappa
    if kappa is None or kappa.value is None:
        read = report.pairs - report.unparsable - report.failed - report.suspect
        raise StageError(
            f"{name} refuses: Cohen's κ of the judge with its raters is undefined ({read} of {report.pairs} pairs have "
            f"a verdict), and min_kappa is {settings.min_kappa:g}; nothing was trained on its verdicts"
        )
    if kappa.low is None or kappa.low < settings.min_kappa:
        interval = f"{kappa.low:.2f} to {kappa.high:.2f}" if kappa.low is not None else "none: they are of one prompt"
        most = report.ceiling.value if report.ceiling and report.ceiling.value is not None else None
        reach = f"; one rater reaches {most:.2f} with the others" if most is not None else ""
        raise StageError(
            f"{name} refuses: Cohen's κ of the judge ({report.judge}) with {report.raters} is {kappa.value:.2f} on "
            f"{kappa.n} pairs (95 % interval {interval}), and the interval must not reach below min_kappa, "
            f"{settings.min_kappa:g}{reach}; "
            f"{_orders(report)}, and {report.unparsable} pairs have no parsable verdict. "
            "Take a better judge or another question, give it examples, have raters compare more pairs, or lower "
            "min_kappa; nothing was trained on it"
        )


def _why_no_pairs(comparisons: Sequence[Comparison], report: JudgeReport) -> str:
    return (
        f"no preference pairs: of {len(comparisons)} comparisons and {report.pairs} judged, {report.ties} are ties "
        f"({_orders(report)}), {report.unparsable} unparsable, "
        f"{report.failed} without an answer, {report.suspect} with orders to the judge and {report.unasked} not asked"
    )


def _orders(report: JudgeReport) -> str:
    """How far the two orders of a pair agree, in words."""
    agree = report.position_consistency.value
    return "each answer was judged by itself" if agree is None else f"the two orders agree on {agree:.0%} of the pairs"


def _metrics(
    report: JudgeReport, comparisons: Sequence[Comparison], votes: Sequence[Vote], pairs: Sequence[PreferencePair]
) -> dict[str, float]:
    """The stage's figures; those that need raters are left out where there are none."""
    metrics = {
        "comparisons": float(len(comparisons)),
        "votes": float(len(votes)),
        "pairs": float(len(pairs)),
        "calibrated": float(report.calibrated),
        "ties": float(report.ties),
        "unparsable": float(report.unparsable),
        "failed": float(report.failed),
        "unasked": float(report.unasked),
        "suspect": float(report.suspect),
        "position_bias": report.position_bias,
        "temperature": report.correction.temperature,
        "asked": report.tally["asked"],
        "answers_kept": report.tally["cached"],
        "judge_tokens": report.tally["prompt_tokens"] + report.tally["answer_tokens"],
        "cost": report.tally["money"],
        "chosen_words": fmean(len(words(pair.chosen)) for pair in pairs),
        "rejected_words": fmean(len(words(pair.rejected)) for pair in pairs),
    }
    for name in ("agreement", "kappa", "ceiling", "position_consistency", "longer", "raters_longer", "own"):
        figure = getattr(report, name)
        if figure is not None and figure.value is not None:
            metrics[name] = figure.value
            if name in ("agreement", "kappa") and figure.low is not None and figure.high is not None:
                metrics |= {f"{name}.low": figure.low, f"{name}.high": figure.high}
    return metrics | ({"ece": report.ece} if report.ece is not None else {})


def _rater_name(context: StageContext) -> str:
    return f"judge-{context.name}"
