"""The preferences stage: responses → comparisons → simulated votes → consensus pairs."""

import json
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import Any

from alignment.data.jsonl import read_records, write_records
from alignment.data.text import words
from alignment.durable_files import write_text
from alignment.errors import StageError
from alignment.evaluation.agreement import krippendorff_alpha, percent_agreement
from alignment.preferences.comparisons import make_comparisons
from alignment.preferences.consensus import Verdict, consensus, preference_pairs, rating_table
from alignment.preferences.dawid_skene import rater_skill
from alignment.preferences.rubric import load_rubric
from alignment.preferences.simulated_raters import simulated_raters
from alignment.preferences.vote_agreement import verdict_prompts
from alignment.recipe.stages.feedback.preferences import PreferencesStage
from alignment.records import Comparison, PreferencePair, Prompt, Response, Vote
from alignment.stage import Progress, StageContext, StageResult

BOOTSTRAP = 1000  # resamples behind the agreement's interval


def run(settings: PreferencesStage, context: StageContext) -> StageResult:
    """Makes comparisons of sample stages' responses, lets simulated raters vote, and writes what came of it.

    Writes ``comparisons.jsonl``, ``votes.jsonl``, ``pairs.jsonl`` and ``agreement.json``. ``context.data["rubric"]`` is
    the rubric's path. Raises StageError where no pair is left to train on, InputError for a faulty rubric.
    """
    folders = [Path(context.inputs[source].path) for source in settings.inputs()["responses"]]
    found = [prompt for folder in folders for prompt in read_records(folder / "prompts.jsonl", Prompt)]
    prompts = list({prompt.id: prompt for prompt in found}.values())
    responses = [response for folder in folders for response in read_records(folder / "responses.jsonl", Response)]
    raters = simulated_raters(settings.raters, load_rubric(context.data["rubric"]), context.run.seed)
    comparisons = make_comparisons(prompts, responses, settings.comparisons_per_prompt, context.run.seed)
    votes: list[Vote] = []
    with context.working():
        for step, rater in enumerate(raters, start=1):
            votes += rater.rate(comparisons)
            context.report(Progress(step, len(raters), {"votes": float(len(votes))}))
        skill = rater_skill(comparisons, votes)
        verdicts = consensus(comparisons, votes, skill=skill)
    pairs = preference_pairs(verdicts, comparisons, settings.min_agreement)
    if not pairs:
        raise StageError(_why_no_pairs(settings, responses, comparisons, verdicts))
    agreement = _agreement(comparisons, votes) | {"consensus": "majority" if skill is None else "dawid_skene"}
    write_records(context.output / "comparisons.jsonl", comparisons)
    write_records(context.output / "votes.jsonl", votes)
    write_records(context.output / "pairs.jsonl", pairs)
    write_text(context.output / "agreement.json", json.dumps(agreement, indent=2) + "\n")
    return StageResult(kind="preferences", metrics=_metrics(comparisons, votes, verdicts, pairs, agreement))


def _why_no_pairs(
    settings: PreferencesStage,
    responses: Sequence[Response],
    comparisons: Sequence[Comparison],
    verdicts: Sequence[Verdict],
) -> str:
    if not comparisons:
        sources = ", ".join(settings.inputs()["responses"])
        return (
            f"no preference pairs: none of the prompts has two different answers among the {len(responses)} responses "
            f"of {sources}; sample more responses per prompt (`per_prompt`), or at a higher temperature"
        )
    decided = sum(verdict.winner is not None for verdict in verdicts)
    both_bad = sum(verdict.both_bad > 0 for verdict in verdicts)
    return (
        f"no preference pairs: of {len(comparisons)} comparisons {decided} have a winner, on none of which at least "
        f"{settings.min_agreement:.0%} of the raters agree, and {both_bad} were called bad on both sides; lower "
        f"`min_agreement` or `raters.tie_margin`, sample more comparisons, or start from a better model (run SFT first)"
    )


def _agreement(comparisons: Sequence[Comparison], votes: Sequence[Vote]) -> dict[str, Any]:
    """What ``agreement.json`` holds; null where a statistic is undefined (one rater, or one category throughout)."""
    table = rating_table(comparisons, votes)
    rows = list(table.values())
    prompts = verdict_prompts(comparisons)
    alpha = krippendorff_alpha(rows, bootstrap=BOOTSTRAP, clusters=prompts)
    share = percent_agreement(rows, bootstrap=BOOTSTRAP, clusters=prompts)
    return {
        "raters": list(table),
        "rater_kind": "simulated",
        "units": len(rows[0]),
        "krippendorff_alpha": {"value": _known(alpha), "low": alpha.low, "high": alpha.high, "level": "nominal"},
        "percent_agreement": {"value": _known(share), "low": share.low, "high": share.high},
    }


def _known(value: float) -> float | None:
    return None if isnan(value) else float(value)


def _metrics(
    comparisons: Sequence[Comparison],
    votes: Sequence[Vote],
    verdicts: Sequence[Verdict],
    pairs: Sequence[PreferencePair],
    agreement: dict[str, Any],
) -> dict[str, float]:
    """The stage's figures. ``ties`` and ``both_bad`` count votes; lengths are in words.

    ``agreement`` is the mean share of the votes that went the winner's way, over the verdicts that have one.
    ``krippendorff_alpha`` is left out where it is undefined.
    """
    metrics = {
        "comparisons": len(comparisons),
        "votes": len(votes),
        "pairs": len(pairs),
        "ties": sum(verdict.ties for verdict in verdicts),
        "both_bad": sum(verdict.both_bad for verdict in verdicts),
        "agreement": fmean(verdict.agreement for verdict in verdicts if verdict.agreement is not None),
        "chosen_words": fmean(len(words(pair.chosen)) for pair in pairs),
        "rejected_words": fmean(len(words(pair.rejected)) for pair in pairs),
    }
    alpha = agreement["krippendorff_alpha"]["value"]
    if alpha is not None:
        metrics["krippendorff_alpha"] = alpha
    return {name: float(value) for name, value in metrics.items()}
